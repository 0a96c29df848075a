#!/usr/bin/env bash
# Creates a Cloud TPU slice with gcloud, runs a command on all its workers, and deletes the slice.
#
#   tpu_pod.sh create NAME --zone=ZONE [--spot]   requests the slice (a queued resource)
#   tpu_pod.sh wait NAME --zone=ZONE              waits until it is ACTIVE
#   tpu_pod.sh push NAME --zone=ZONE              copies the committed files to ~/mend_jax
#   tpu_pod.sh run NAME --zone=ZONE COMMAND ...   in the background; --attach follows it to the end
#   tpu_pod.sh status NAME --zone=ZONE            of the TPU, and of the run on each worker
#   tpu_pod.sh logs NAME --zone=ZONE [--worker=0] [--lines=100] [--follow]
#   tpu_pod.sh stop NAME --zone=ZONE              sends SIGTERM, so that the run saves its state
#   tpu_pod.sh delete NAME --zone=ZONE
#   tpu_pod.sh train NAME --zone=ZONE [--spot] [--retries=10] [--delete] COMMAND ...
#
# `train` is create, wait, push and run, and then watches the run. If the TPU is preempted or fails,
# `train` deletes it and starts again; if the command ends with another status than 0, 2 (an error
# that the log explains) or 143 (stopped), it starts the command again on the same TPU; at most
# --retries times in all. The command must keep its state in a --workdir in a bucket (gs://...), and
# must not exit with 0 after a signal. Called again, `train` continues with the existing TPU and
# run. --delete deletes the TPU after the command succeeds.
#
# --create-flags="--reserved --network=NAME" are further flags of gcloud's queued-resources create,
# split at spaces. --env-file=FILE (push, train): lines NAME=VALUE in the syntax of bash, such as
# HF_TOKEN=..., copied to the workers and set for each run; no value is on a command line or in a log.
#
# All subcommands: --project=PROJECT, --node-id=NODE (default: NAME), --dry-run (prints commands,
# runs nothing), --help. create, train: --accelerator-type=v5litepod-16, --runtime-version=VERSION
# (default: by accelerator type). stop: --grace=120 seconds. wait, train: --poll=30 seconds.
# shellcheck source=launch/common.sh
source "$(dirname "$0")/common.sh"

worker_script="bash mend_jax/launch/run_tpu.sh"

runtime_version() {
  case "$1" in
    v2-* | v3-* | v4-*) echo tpu-ubuntu2204-base ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *)
      die "no runtime version is known for the accelerator type '$1' (known: v4-N, v5litepod-N, \
v5p-N, v6e-N); give --runtime-version=VERSION"
      ;;
  esac
}

tpus() { run gcloud compute tpus "$@" "${where[@]}"; }

# on_workers WORKER COMMAND_LINE: WORKER is all or a number.
on_workers() { tpus tpu-vm ssh "$node" --worker="$1" --command="$2" --quiet; }

create() {
  local flags=(--node-id="$node" --accelerator-type="$accelerator_type")
  flags+=(--runtime-version="$runtime")
  if [[ -n ${option[spot]:-} ]]; then flags+=(--spot); fi
  tpus queued-resources create "$name" "${flags[@]}" "${create_flags[@]}"
}

delete() { tpus queued-resources delete "$name" --force --quiet; }

# Sets `state`: gcloud's ACTIVE, SUSPENDED, ...; MISSING; or UNKNOWN if gcloud failed.
state=MISSING
failed_reads=0
read_state() {
  local describe=(queued-resources describe "$name" "--format=value(state.state)")
  if ((dry_run)); then
    tpus "${describe[@]}"
    state=ACTIVE
  elif state=$(tpus "${describe[@]}" 2>"$errors"); then
    failed_reads=0
  elif grep --quiet NOT_FOUND "$errors"; then
    state=MISSING failed_reads=0
  else
    state=UNKNOWN failed_reads=$((failed_reads + 1))
    note "cannot read the state of '$name': $(<"$errors")"
    ((failed_reads < 10)) ||
      die "gave up after $failed_reads tries; a run on '$name', if any, continues: see its status" 1
  fi
}

# Returns 1 if the TPU will never be ACTIVE.
wait_until_active() {
  local shown=""
  while true; do
    read_state
    if [[ $state != "$shown" && $dry_run == 0 ]]; then echo "$name: $state"; fi
    shown=$state
    case "$state" in
      ACTIVE) return 0 ;;
      FAILED | SUSPENDING | SUSPENDED | DELETING | MISSING) return 1 ;;
    esac
    sleep "$poll"
  done
}

push() {
  local archive="${TMPDIR:-/tmp}/mend_jax-$name.tar.gz"
  git -C "$root" diff --quiet HEAD ||
    note "warning: only committed files are pushed; there are uncommitted changes"
  run git -C "$root" archive --format=tar.gz --output="$archive" HEAD &&
    tpus tpu-vm scp "$archive" "$node:mend_jax.tar.gz" --worker=all --quiet &&
    on_workers all "mkdir -p mend_jax && tar -xzf mend_jax.tar.gz -C mend_jax" &&
    run rm -f "$archive" || return
  if [[ -n $env_file ]]; then
    on_workers all "install -m 600 /dev/null mend_jax_env_file" &&
      tpus tpu-vm scp "$env_file" "$node:mend_jax_env_file" --worker=all --quiet
  fi
}

# Starts the command on all workers, followed by `after_start`.
after_start=""
start_run() {
  on_workers all "$worker_script --background $(quoted "$@")$after_start"
}

logs() {
  local line="tail -n $lines"
  if [[ -n ${option[follow]:-} ]]; then line+=" -f"; fi
  on_workers "${option[worker]:-0}" "$line mend_jax_run/log"
}

# Returns 0 if the TPU is lost or being lost: a preempted run ends a little before the state changes.
is_lost() {
  local node_state
  for _ in 1 2 3 4; do
    read_state
    case "$state" in
      ACTIVE)
        node_state=$(tpus tpu-vm describe "$node" "--format=value(state)" 2>"$errors") || true
        case "$node_state" in
          PREEMPTED | STOPPED | TERMINATED)
            state=$node_state
            return 0
            ;;
        esac
        ;;
      UNKNOWN) ;;
      *) return 0 ;;
    esac
    sleep "$poll"
  done
  return 1
}

# Returns 0 if the command succeeded on all workers, 1 if the TPU is lost, 3 if the command is to be
# started again. A command that failed for good, or was stopped, ends this script.
watch_run() {
  local report failure
  if ((dry_run)); then
    read_state
    on_workers all "$worker_script --status"
    return
  fi
  while true; do
    sleep "$poll"
    read_state
    case "$state" in
      ACTIVE) ;;
      UNKNOWN) continue ;;
      *) return 1 ;;
    esac
    if ! report=$(on_workers all "$worker_script --status" 2>"$errors"); then
      if is_lost; then return 1; fi
      note "the workers of '$name' do not answer; trying again. $(tail -n 1 "$errors")"
    elif failure=$(grep -m1 -x 'run: exit 2' <<<"$report" ||
      grep -m1 -xE 'run: (exit [1-9][0-9]*|lost|none)' <<<"$report"); then
      note "a worker of '$name' reports '$failure'; checking whether the TPU is being lost"
      if is_lost; then return 1; fi
      case "$failure" in
        'run: exit 2' | 'run: exit 143') end_failed "$failure" ;;
        *)
          failed=$failure
          return 3
          ;;
      esac
    elif ! grep --quiet -x 'run: running' <<<"$report"; then
      return 0
    fi
  done
}

end_failed() {
  local status=${1##* } what="failed"
  if [[ $status == 143 ]]; then what="was stopped, and train continues it"; fi
  note "the command $what on a worker of '$name' ($1); read: $script logs $name ${where[*]}"
  die "'$name' is $state and costs money until: $script delete $name ${where[*]}" "$status"
}

# Deletes a lost TPU; one that is still shutting down cannot be deleted at once.
remove() {
  for _ in 1 2 3 4 5 6 7 8 9 10; do
    if delete; then return; fi
    read_state
    if [[ $state == MISSING ]]; then return; fi
    sleep "$poll"
  done
  die "cannot delete '$name', which is $state; see gcloud's message above" 1
}

# Creates the TPU, unless an earlier `train` left it.
ensure_created() {
  if ((!dry_run)); then read_state; fi
  case "$state" in
    MISSING) ;;
    FAILED | SUSPENDING | SUSPENDED | DELETING) remove ;;
    *)
      note "'$name' exists already ($state); continuing with it"
      return
      ;;
  esac
  create || die "cannot create '$name'; see gcloud's message above" 1
}

# Returns as watch_run does.
try_once() {
  ensure_created
  wait_until_active || return 1
  if ! { push && start_run "$@"; }; then
    if is_lost; then return 1; fi
    die "cannot start the command on '$name', which is $state; see gcloud's message above. \
It costs money until: $script delete $name ${where[*]}" 1
  fi
  watch_run
}

train() {
  local tries=0
  trap 'die "no longer watching; the TPU and its run continue. Call train again to watch again; \
to end it: $script stop $name ${where[*]}, $script delete $name ${where[*]}" 130' INT TERM
  local status=0
  while true; do
    status=0
    try_once "$@" || status=$?
    if ((status == 0)); then break; fi
    tries=$((tries + 1))
    if ((status == 3)); then
      ((tries <= retries)) ||
        die "the command ended $tries time(s) on '$name', the last with '$failed'; gave up after \
--retries=$retries; read: $script logs $name ${where[*]}. It costs money until: \
$script delete $name ${where[*]}" 1
      note "the command ended with '$failed'; retry $tries of $retries on the same TPU"
      on_workers all "$worker_script --stop --grace=$grace" ||
        note "not all workers of '$name' could be stopped"
      continue
    fi
    ((tries <= retries)) ||
      die "'$name' was preempted or failed $tries time(s), now $state; gave up after \
--retries=$retries. The run's state is in its --workdir: call train again, perhaps in another \
zone or without --spot" 1
    note "'$name' is $state; retry $tries of $retries"
    remove
  done
  if [[ -n ${option[delete]:-} ]]; then
    delete
  elif ((!dry_run)); then
    note "done. '$name' costs money until: $script delete $name ${where[*]}"
  fi
}

valued='zone|project|node-id|accelerator-type|runtime-version|worker|lines|grace|poll|retries'
valued+='|create-flags|env-file'
switches='spot|attach|follow|delete'
subcommand=${1:-}
case "$subcommand" in
  create | wait | push | run | status | logs | stop | delete | train) shift ;;
  --help | -h) ;;
  *) die "unknown subcommand '$subcommand'; one of create, wait, push, run, status, logs, stop, \
delete, train, or --help" ;;
esac
parse_options "$valued" "$switches" "$@"
name=${rest[0]:-}
[[ -n $name ]] || die "$subcommand: which TPU? usage: $script $subcommand NAME --zone=ZONE ..."
valid_name "$name"
parse_options "$valued" "$switches" "${rest[@]:1}"
[[ -n ${option[zone]:-} ]] ||
  die "$subcommand $name: which zone? give --zone=ZONE, such as us-west4-a"
case "$subcommand" in
  run | train) ((${#rest[@]})) || die "$subcommand $name: no command; give it after the options" ;;
  *) ((${#rest[@]} == 0)) || die "$subcommand $name takes no command, but got '${rest[0]}'" ;;
esac

where=(--zone="${option[zone]}")
if [[ -n ${option[project]:-} ]]; then where+=(--project="${option[project]}"); fi
node=${option[node-id]:-$name}
accelerator_type=${option[accelerator-type]:-v5litepod-16}
runtime=${option[runtime-version]:-}
if [[ -z $runtime ]]; then runtime=$(runtime_version "$accelerator_type"); fi
lines=$(number_option lines 100)
grace=$(number_option grace 120)
poll=$(number_option poll 30)
retries=$(number_option retries 10)
read -r -a create_flags <<<"${option[create-flags]:-}"
env_file=${option[env-file]:-}
[[ -z $env_file || -r $env_file ]] || die "--env-file=$env_file cannot be read"
failed=""
errors=$(mktemp)
trap 'rm -f "$errors"' EXIT

case "$subcommand" in
  create | push | logs | delete) "$subcommand" ;;
  wait)
    wait_until_active ||
      die "'$name' is $state and will not become ACTIVE; delete it and create it again, perhaps in \
another zone, with another --accelerator-type or without --spot. Why: gcloud compute tpus \
queued-resources describe $name ${where[*]}" 1
    ;;
  run)
    if [[ -n ${option[attach]:-} ]]; then after_start=" && $worker_script --follow"; fi
    start_run "${rest[@]}"
    ;;
  status)
    read_state
    if ((!dry_run)); then echo "$name: $state"; fi
    if [[ $state == ACTIVE ]]; then on_workers all "$worker_script --status"; fi
    ;;
  stop) on_workers all "$worker_script --stop --grace=$grace" ;;
  train) train "${rest[@]}" ;;
esac
