#!/usr/bin/env bash
# Runs a command on TPUs of a GKE cluster with xpk (pip install xpk; it needs gcloud and Docker).
#
#   gke.sh cluster --cluster=CLUSTER --zone=ZONE [--spot]       creates a cluster of TPU slices
#   gke.sh run NAME --cluster=CLUSTER --zone=ZONE COMMAND ...   runs it as the workload NAME
#   gke.sh logs NAME --cluster=CLUSTER --zone=ZONE [--worker=0] [--lines=100] [--follow]
#   gke.sh delete NAME --cluster=CLUSTER --zone=ZONE            the workload, after SIGTERM
#   gke.sh delete --with-cluster --cluster=CLUSTER --zone=ZONE  the cluster, which costs money
#
# The image contains this project's committed files. A preempted or failed command is restarted, up
# to --retries=10 times, but not one that exits with 2 (an error that its log explains); it must keep
# its state in a --workdir in a bucket (gs://...).
#
# --xpk-flags="--reservation=NAME --env-file=FILE" are further flags of xpk's cluster create or
# workload create, split at spaces; --env-file is how secrets reach a workload.
#
# All subcommands: --project=PROJECT, --dry-run (prints the commands, runs nothing), --help. cluster
# and run: --tpu-type=v5litepod-16, --num-slices=1. run: --base-docker-image=python:3.11 and
# --grace=120, the seconds between SIGTERM and SIGKILL.
# shellcheck source=launch/common.sh
source "$(dirname "$0")/common.sh"

cluster() {
  local flags=(--tpu-type "$tpu_type" --num-slices "$slices")
  if [[ -n ${option[spot]:-} ]]; then flags+=(--spot); fi
  run xpk cluster create --cluster "$cluster" "${flags[@]}" "${where[@]}" "${xpk_flags[@]}"
}

# xpk starts a workload again after status 42 and 127 to 255; 1 is an error that is not explained.
# `exec` lets the signals that xpk passes on reach the command.
run_workload() {
  local files="${TMPDIR:-/tmp}/mend_jax-$name"
  git -C "$root" diff --quiet HEAD ||
    note "warning: only committed files go into the image; there are uncommitted changes"
  run rm -rf "$files" "$files.tar"
  run mkdir "$files"
  run git -C "$root" archive --output="$files.tar" HEAD
  run tar -xf "$files.tar" -C "$files"
  run xpk workload create --workload "$name" --cluster "$cluster" --tpu-type "$tpu_type" \
    --num-slices "$slices" --base-docker-image "$image" --script-dir "$files" \
    --max-restarts "$retries" --restart-on-exit-codes 1 \
    --termination-grace-period-seconds "$grace" "${where[@]}" "${xpk_flags[@]}" \
    --command "exec bash launch/run_tpu.sh $(quoted "$@")"
  run rm -rf "$files" "$files.tar"
}

logs() {
  local pods="jobset.sigs.k8s.io/jobset-name=$name"
  pods+=",batch.kubernetes.io/job-completion-index=${option[worker]:-0}"
  local flags=(--selector="$pods" --container=jax-tpu --tail="$lines")
  if [[ -n ${option[follow]:-} ]]; then flags+=(--follow); fi
  run gcloud container clusters get-credentials "$cluster" --location="${option[zone]%-*}" \
    "${project[@]}"
  run kubectl logs "${flags[@]}"
}

delete() {
  if [[ -n $name ]]; then
    run xpk workload delete --workload "$name" --cluster "$cluster" "${where[@]}"
  fi
  if [[ -n ${option[with-cluster]:-} ]]; then
    run xpk cluster delete --cluster "$cluster" --force "${where[@]}"
  fi
}

valued='cluster|zone|project|tpu-type|num-slices|base-docker-image|worker|lines|retries|grace'
valued+='|xpk-flags'
switches='spot|follow|with-cluster'
subcommand=${1:-}
case "$subcommand" in
  cluster | run | logs | delete) shift ;;
  --help | -h) ;;
  *) die "unknown subcommand '$subcommand'; one of cluster, run, logs, delete, or --help" ;;
esac
parse_options "$valued" "$switches" "$@"
name=""
if [[ $subcommand != cluster && ${#rest[@]} -gt 0 ]]; then
  name=${rest[0]}
  valid_name "$name"
  parse_options "$valued" "$switches" "${rest[@]:1}"
fi
case "$subcommand" in
  cluster) ;;
  delete)
    [[ -n $name || -n ${option[with-cluster]:-} ]] ||
      die "delete what? give the NAME of a workload, or --with-cluster"
    ;;
  *) [[ -n $name ]] || die "$subcommand: which workload? usage: $script $subcommand NAME ..." ;;
esac
for required in cluster zone; do
  [[ -n ${option[$required]:-} ]] || die "$subcommand: which $required? give --$required=${required^^}"
done
case "$subcommand" in
  run) ((${#rest[@]})) || die "run $name: no command; give it after the options" ;;
  *) ((${#rest[@]} == 0)) || die "$subcommand takes no command, but got '${rest[0]}'" ;;
esac

cluster=${option[cluster]}
project=()
if [[ -n ${option[project]:-} ]]; then project=(--project="${option[project]}"); fi
where=(--zone="${option[zone]}" "${project[@]}")
tpu_type=${option[tpu-type]:-v5litepod-16}
image=${option[base-docker-image]:-python:3.11}
read -r -a xpk_flags <<<"${option[xpk-flags]:-}"
slices=$(number_option num-slices 1)
lines=$(number_option lines 100)
retries=$(number_option retries 10)
grace=$(number_option grace 120)

case "$subcommand" in
  run) run_workload "${rest[@]}" ;;
  *) "$subcommand" ;;
esac
