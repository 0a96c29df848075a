# shellcheck shell=bash
# Functions that the scripts of this folder source. Commands that change something go through `run`,
# so that --dry-run can print them instead.
set -euo pipefail

script=$(basename "$0")
if ((BASH_VERSINFO[0] < 5)); then
  echo "$script: needs bash 5, but this is $BASH_VERSION; on macOS: brew install bash" >&2
  exit 2
fi
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck disable=SC2034 # for the scripts
root=$(dirname "$here")
dry_run=0

# Prints the comment at the top of the script.
usage() { sed -n '2,/^[^#]/{/shellcheck/d; s/^# \{0,1\}//p}' "$here/$script"; }

note() { printf '%s: %s\n' "$script" "$1" >&2; }

# die MESSAGE [STATUS]
die() {
  note "$1"
  exit "${2:-2}"
}

# Prints the words as one line, quoted for bash.
quoted() {
  local line
  printf -v line '%q ' "$@"
  printf '%s' "${line% }"
}

run() {
  if ((dry_run)); then
    quoted "$@"
    echo
  else
    "$@"
  fi
}

# parse_options VALUED FLAGS ARGUMENT ...
# Parses the leading options. VALUED and FLAGS are their names, such as 'zone|project'. Sets `option`
# to their values by name (1 for a flag), and `rest` to the arguments after them.
declare -A option=()
rest=()
parse_options() {
  local valued=$1 flags="$2|dry-run"
  shift 2
  while (($#)); do
    if [[ $1 == --help || $1 == -h ]]; then
      usage
      exit 0
    elif [[ $1 == -- ]]; then
      shift
      break
    elif [[ $1 =~ ^--($valued)=(.*)$ ]]; then
      option[${BASH_REMATCH[1]}]=${BASH_REMATCH[2]}
    elif [[ $1 =~ ^--($valued)$ ]]; then
      (($# > 1)) || die "$1 needs a value, such as $1=VALUE"
      option[${1#--}]=$2
      shift
    elif [[ $1 =~ ^--($flags)$ ]]; then
      option[${1#--}]=1
    elif [[ $1 == -* ]]; then
      die "unknown option '$1'; the options are --${valued//|/, --}, --${flags//|/, --}, --help"
    else
      break
    fi
    shift
  done
  dry_run=${option[dry-run]:-0}
  rest=("$@")
}

# number_option OPTION DEFAULT: prints the option's value, a whole number of zero or more.
number_option() {
  local value=${option[$1]:-$2}
  [[ $value =~ ^[0-9]+$ ]] || die "--$1=$value is not a whole number of zero or more"
  echo "$value"
}

# valid_name NAME: fails unless Google Cloud accepts it as the name of a resource.
valid_name() {
  [[ $1 =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] ||
    die "'$1' is not a valid name; use a-z, 0-9 and -, and begin with a letter"
}
