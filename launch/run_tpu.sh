#!/usr/bin/env bash
# Sets up a single TPU VM host (not a pod) and runs a command on it, from a checkout of this project:
#
#   bash launch/run_tpu.sh python -m mend_jax.main --config=quickstart.py --config.mesh.data=-1
#
# The first call makes ~/mend_jax_env; later calls only run. `--dry-run` prints what would be done.
set -euo pipefail
cd "$(dirname "$0")/.."

run() { if [[ "${dry_run}" == 1 ]]; then printf '%q ' "$@"; echo; else "$@"; fi; }
dry_run=0
if [[ "${1:-}" == --dry-run ]]; then dry_run=1; shift; fi
if [[ $# == 0 ]]; then echo "usage: $0 [--dry-run] COMMAND [ARGUMENT ...]" >&2; exit 2; fi

env_dir="${MEND_ENV_DIR:-$HOME/mend_jax_env}"
if [[ ! -e "$env_dir/.ready" ]]; then
  run python3 -m venv "$env_dir"
  run "$env_dir/bin/pip" install --quiet -r requirements.txt "jax[tpu]"
  run touch "$env_dir/.ready"
fi
PATH="$env_dir/bin:$PATH" run "$@"
