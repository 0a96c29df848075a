#!/usr/bin/env bash
# Runs N processes of a command on this machine as one JAX job, to try out a pod.
#
#   bash launch/local_pod.sh --devices=4 2 python -m mend_jax.main --config=quickstart.py:smoke
#
#   local_pod.sh [--devices=K] [--log-dir=runs/local_pod] [--port=PORT] [--grace=30] N COMMAND ...
#
# Process i gets MEND_COORDINATOR=127.0.0.1:PORT (a free one), MEND_NUM_PROCESSES=N,
# MEND_PROCESS_ID=i, JAX_PLATFORMS=cpu unless set, and with --devices K virtual devices. Its output
# goes to LOG_DIR/process_i.log, and that of process 0 to the terminal too. SIGINT and SIGTERM are
# passed on to all. After a failure the other processes have --grace seconds to end, then get
# SIGTERM, and after another --grace seconds SIGKILL. The exit status is that of the first failure.
# --dry-run prints the commands and runs nothing; --help.
# shellcheck source=launch/common.sh
source "$(dirname "$0")/common.sh"

free_port() {
  python3 -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# Sets `environment` for process $1.
process_environment() {
  environment=(
    MEND_COORDINATOR="127.0.0.1:$port" MEND_NUM_PROCESSES="$n" MEND_PROCESS_ID="$1"
    JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"
  )
  if [[ -n $devices ]]; then
    local flag="--xla_force_host_platform_device_count=$devices"
    environment+=(XLA_FLAGS="${XLA_FLAGS:+$XLA_FLAGS }$flag")
    # A waiting collective blocks a thread of XLA's pool; a small pool can deadlock.
    environment+=(PJRT_NPROC="${PJRT_NPROC:-64}")
  fi
}

log_file() { echo "$log_dir/process_$1.log"; }

# start I COMMAND ...
start() {
  local log
  log=$(log_file "$1")
  process_environment "$1"
  if ((dry_run)); then
    echo "$(quoted env "${environment[@]}" "${@:2}") </dev/null >$(quoted "$log") 2>&1 &"
    return
  fi
  : >"$log" # before anyone reads it
  set -m # starts a process group, in which SIGINT is not ignored
  env "${environment[@]}" "${@:2}" </dev/null >>"$log" 2>&1 &
  set +m
  pids[$1]=$!
}

# Sends signal $1 to each of `pids` that is alive.
signal_all() {
  local i
  for i in "${!pids[@]}"; do kill -"$1" "${pids[$i]}" 2>/dev/null || true; done
}

# Ends the other processes after a failure. If a signal was passed on, they have had it already.
end_others() {
  sleep "$grace"
  if ((!signalled)); then
    signal_all TERM
    sleep "$grace"
  fi
  signal_all KILL
}

# shellcheck disable=SC2329 # called by trap
pass_on() {
  signalled=1
  note "SIG$1: passed on to all processes"
  signal_all "$1"
}

# first_failure I STATUS
first_failure() {
  exit_status=$2
  note "process $1 ended with status $2; the others have $grace s to end. $(log_file "$1") ends:"
  tail -n 5 "$(log_file "$1")" >&2
  set -m
  end_others &
  set +m
  ender=$!
}

# Waits for all processes. (`wait -n` can miss one that ends before it is called.)
wait_for_all() {
  local i status
  while ((${#pids[@]})); do
    for i in "${!pids[@]}"; do
      if kill -0 "${pids[$i]}" 2>/dev/null; then continue; fi
      status=0
      wait "${pids[$i]}" || status=$?
      unset "pids[$i]"
      if ((status && !exit_status)); then first_failure "$i" "$status"; fi
    done
    sleep 0.2 || true # a signal ends it
  done
}

# Also ends what the processes have started: each leads a process group.
# shellcheck disable=SC2329 # called by trap
clean_up() {
  local group
  if [[ -n $ender ]]; then kill -KILL -- -"$ender" 2>/dev/null || true; fi
  for group in "${groups[@]}"; do kill -KILL -- -"$group" 2>/dev/null || true; done
}

parse_options 'devices|log-dir|port|grace' '' "$@"
n=${rest[0]:-}
[[ $n =~ ^[1-9][0-9]*$ ]] ||
  die "how many processes? '$n' is not a number; usage: $script [OPTION ...] N COMMAND ..., or --help"
((${#rest[@]} > 1)) || die "no command; usage: $script [OPTION ...] $n COMMAND ..., or --help"
command=("${rest[@]:1}")
log_dir=${option[log-dir]:-runs/local_pod}
devices=${option[devices]:-}
if [[ -n $devices ]]; then devices=$(number_option devices 1); fi
grace=$(number_option grace 30)
port=${option[port]:-}
if [[ -z $port ]]; then port=$(free_port); fi

run mkdir -p "$log_dir"
pids=() groups=() environment=()
exit_status=0 signalled=0 ender=""
if ((!dry_run)); then
  trap 'pass_on INT' INT
  trap 'pass_on TERM' TERM
  trap clean_up EXIT
fi
for ((i = 0; i < n; i++)); do start "$i" "${command[@]}"; done
if ((dry_run)); then
  echo "tail -n +1 -f $(quoted "$(log_file 0)")"
  exit 0
fi
groups=("${pids[@]}")
tail -n +1 -s 0.2 --pid="${pids[0]}" -f "$(log_file 0)" &
tail_pid=$!
wait_for_all
wait "$tail_pid" || true
exit "$exit_status"
