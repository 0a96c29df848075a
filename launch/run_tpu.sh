#!/usr/bin/env bash
# Runs a command on a TPU VM, from a checkout of this project. On a pod, each worker runs it:
# tpu_pod.sh does that.
#
#   bash launch/run_tpu.sh python -m mend_jax.main --config=quickstart.py --config.mesh.data=-1
#
#   run_tpu.sh [--background] COMMAND [ARGUMENT ...]
#   run_tpu.sh --follow               prints the background run's log, and exits with its status
#   run_tpu.sh --status               run: none, running, exit N, or lost (no exit status is known)
#   run_tpu.sh --stop [--grace=120]   sends SIGTERM, so that it saves its state, and waits
#   run_tpu.sh --help
#
# The first call creates the environment ~/mend_jax_env (MEND_ENV_DIR); later calls reuse it until
# the requirements change. A background run outlives the connection. Its log, process id and exit
# status are in ~/mend_jax_run (MEND_RUN_DIR). A command that is running is not started again.
# Variables in ~/mend_jax_env_file (MEND_ENV_FILE; tpu_pod.sh --env-file writes it) are set for each
# run: lines NAME=VALUE in the syntax of bash. --dry-run prints the commands, for the root of the checkout, and runs nothing.
# shellcheck source=launch/common.sh
source "$(dirname "$0")/common.sh"

env_dir="${MEND_ENV_DIR:-$HOME/mend_jax_env}"
run_dir="${MEND_RUN_DIR:-$HOME/mend_jax_run}"
env_file="${MEND_ENV_FILE:-$HOME/mend_jax_env_file}"

is_new_enough() {
  command -v "$1" >/dev/null && "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))'
}

# JAX and this project need Python 3.11 or newer. TPU images of Ubuntu 22.04 have 3.10; there uv
# installs a newer one.
make_environment() {
  local python
  for python in python3 python3.12 python3.13 python3.11; do
    if is_new_enough "$python"; then
      run "$python" -m venv "$env_dir"
      return
    fi
  done
  run python3 -m pip install --quiet --user uv
  run python3 -m uv venv --quiet --seed --allow-existing --python 3.12 "$env_dir"
}

# On a slice of several workers JAX finds the others (mend_jax/parallel/distributed.py).
export MEND_DISTRIBUTED="${MEND_DISTRIBUTED:-auto}"

# .ready is a copy of the installed requirements.
set_up() {
  if cat requirements.txt requirements-tpu.txt | cmp --quiet - "$env_dir/.ready"; then return; fi
  [[ -x "$env_dir/bin/pip" ]] || make_environment
  run "$env_dir/bin/pip" install --quiet -r requirements-tpu.txt
  if ((dry_run)); then
    echo "cat requirements.txt requirements-tpu.txt >$(quoted "$env_dir/.ready")"
  else
    cat requirements.txt requirements-tpu.txt >"$env_dir/.ready"
  fi
}

run_here() {
  set_up
  PATH="$env_dir/bin:$PATH"
  if [[ -e $env_file ]]; then
    set -a
    # shellcheck source=/dev/null
    source "$env_file"
    set +a
  fi
  if ((dry_run)); then run "$@"; else exec "$@"; fi
}

# The supervising process holds the lock while a background run lives.
in_progress() { [[ -e "$run_dir/lock" ]] && ! flock --nonblock "$run_dir/lock" true; }

start_background() {
  run mkdir -p "$run_dir"
  if ((dry_run)); then
    echo "nohup setsid bash launch/run_tpu.sh --supervise $(quoted "$@")" \
      "</dev/null >$(quoted "$run_dir/log") 2>&1 &"
    return
  fi
  exec 9>>"$run_dir/lock"
  if ! flock --nonblock 9; then
    [[ "$(<"$run_dir/command")" == "$(quoted "$@")" ]] ||
      die "another command is running: $(<"$run_dir/command"); end it first with --stop" 1
    note "this command is running already"
    return
  fi
  rm -f "$run_dir/pid" "$run_dir/exit_status"
  if [[ -e "$run_dir/log" ]]; then mv "$run_dir/log" "$run_dir/log.previous"; fi
  quoted "$@" >"$run_dir/command"
  : >"$run_dir/log" # before anyone reads it
  nohup setsid bash launch/run_tpu.sh --supervise "$@" </dev/null >>"$run_dir/log" 2>&1 &
  note "started; log: $run_dir/log"
}

# Waits for the command's end, whatever the signal, and writes its exit status.
supervise() {
  local command_pid interrupted status
  trap 'interrupted=1' TERM INT HUP
  bash launch/run_tpu.sh "$@" 9>&- &
  command_pid=$!
  echo "$command_pid" >"$run_dir/pid"
  interrupted=1
  while ((interrupted)); do
    interrupted=0 status=0
    wait "$command_pid" || status=$?
  done
  echo "$status" >"$run_dir/exit_status.new"
  mv "$run_dir/exit_status.new" "$run_dir/exit_status"
}

status() {
  if in_progress; then
    echo "run: running"
  elif [[ -e "$run_dir/exit_status" ]]; then
    echo "run: exit $(<"$run_dir/exit_status")"
  elif [[ -e "$run_dir/command" ]]; then
    echo "run: lost"
  else
    echo "run: none"
  fi
}

follow() {
  if ((dry_run)); then
    run tail -n +1 -f "$run_dir/log"
    return
  fi
  [[ -e "$run_dir/log" ]] || die "no run was started here: there is no $run_dir/log" 1
  flock "$run_dir/lock" true & # ends with the run, and tail with it
  tail -n +1 -s 0.2 --pid=$! -f "$run_dir/log"
  [[ -e "$run_dir/exit_status" ]] ||
    die "the run ended without an exit status; was this machine restarted?" 1
  exit "$(<"$run_dir/exit_status")"
}

stop() {
  local grace=$1
  if ((dry_run)); then
    echo "kill -TERM \"\$(cat $(quoted "$run_dir/pid"))\""
    return
  fi
  if ! in_progress; then
    note "no run is in progress"
    return
  fi
  until [[ -s "$run_dir/pid" ]]; do sleep 0.1; done
  kill -TERM "$(<"$run_dir/pid")"
  flock --timeout "$grace" "$run_dir/lock" true ||
    die "the run has not ended $grace s after SIGTERM; see $run_dir/log, or give --grace=SECONDS" 1
  note "stopped; $(status)"
}

parse_options 'grace' 'background|follow|status|stop|supervise' "$@"
cd "$root"
if [[ -n ${option[status]:-} ]]; then
  status
elif [[ -n ${option[follow]:-} ]]; then
  follow
elif [[ -n ${option[stop]:-} ]]; then
  grace=$(number_option grace 120)
  stop "$grace"
elif ((${#rest[@]} == 0)); then
  die "no command; usage: $script [--dry-run] [--background] COMMAND [ARGUMENT ...], or --help"
elif [[ -n ${option[background]:-} ]]; then
  start_background "${rest[@]}"
elif [[ -n ${option[supervise]:-} ]]; then
  supervise "${rest[@]}"
else
  run_here "${rest[@]}"
fi
