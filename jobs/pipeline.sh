#!/usr/bin/env bash
# Submit a pipeline to Slurm: the provider's stages once; for every customer, a task of an array each, user, merge and eval; then the report.
#   jobs/pipeline.sh CONFIG.yaml [--dry-run] [--publish FILE.sbatch] [--option value ...]
# CONFIG.yaml is what `breakwater run` takes, and the options are those of `breakwater run`. A customer is a train stage `user` (or `sft`) and
# all that refers to it. What is done or in the queue, for this file and --output and whatever the other options, is not submitted again: repeat
# the command when customers were added or a job failed.
# FILE.sbatch gets an array task for each customer who is evaluated now and passes (max-hs, min-fa), and CONFIG.yaml as its argument. Who was
# evaluated before is published by hand: sbatch --array=CUSTOMER,... FILE.sbatch CONFIG.yaml.
set -euo pipefail
jobs=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "${BREAKWATER_SITE:-$jobs/site.conf}"

config='' publish='' dry_run='' options=()
while [ $# -gt 0 ]; do
  case $1 in
    --dry-run) dry_run=yes ;;
    --publish)
      case ${2:---} in --*) echo "pipeline.sh: --publish needs a batch script" >&2; exit 64 ;; esac
      publish=$2
      [ -r "$publish" ] || { echo "pipeline.sh: --publish $publish: cannot be read" >&2; exit 66; }
      shift
      ;;
    -h | --help) sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 0 ;;
    --*=*) options+=("$1") ;;
    --*) # its value, unless it is a flag
      options+=("$1")
      case ${2:---} in --*) ;; *) options+=("$2"); shift ;; esac
      ;;
    *) [ -z "$config" ] || { echo "pipeline.sh: one CONFIG.yaml, not '$config' and '$1'" >&2; exit 64; }; config=$1 ;;
  esac
  shift
done
[ -n "$config" ] || { sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 64; }

if [ -n "$modules" ]; then
  command -v module >/dev/null || . "$module_init"
  module load $modules
fi

if [ -z "$dry_run" ]; then # fails early, and in words
  for tool in sbatch squeue; do
    command -v "$tool" >/dev/null && continue
    echo "pipeline.sh: there is no $tool here: submit where Slurm is; --dry-run needs none, nor does: $program run $config ${options[*]}" >&2
    exit 69
  done
fi

stages=$("$program" run "$config" --show stages ${options[@]+"${options[@]}"})
output=''
for ((i = 0; i < ${#options[@]}; i++)); do
  case ${options[i]} in
    --output=*) output=$(realpath -m "${options[i]#*=}") ;;
    --output) output=$(realpath -m "${options[i + 1]:-}") ;;
  esac
done
mark=$(printf '%s\n' "$(realpath "$config")" "$output" | cksum | cut -d' ' -f1) # names the jobs of this pipeline

# A dry run needs no Slurm: where none answers soon (the client alone would try for a minute, each time) the queue counts as empty.
no_queue=''
if [ -n "$dry_run" ] && ! timeout 10 squeue --noheader --me >/dev/null 2>&1; then
  no_queue=yes
  echo "pipeline.sh: no Slurm answers here: shown as if nothing were in the queue" >&2
fi

# queued NAME,... FORMAT: jobs of this pipeline that wait or run.
queued() {
  [ -z "$no_queue" ] || return 0
  local names=${1//,/-$mark,}-$mark found
  found=$(squeue --noheader --array --me --name="$names" --format="$2") ||
    { echo "pipeline.sh: squeue does not say what is in the queue: nothing more is submitted" >&2; return 69; }
  sort -un <<<"$found"
}

# submit NAME SIZE DEPENDENCY ARRAY SCRIPT: the job is $id.
submit() {
  local line=(sbatch --parsable --job-name="$1-$mark" ${account:+--account="$account"} ${partition:+--partition="$partition"} $2)
  [ -z "$3" ] || line+=(--dependency="$3" --kill-on-invalid-dep=yes)
  [ -z "$4" ] || line+=(--array="$4")
  line+=("$5" "$config" ${options[@]+"${options[@]}"})
  if [ -n "$dry_run" ]; then
    echo "${line[@]@Q}" | sed "s/'\([A-Za-z0-9_./:=,%-]*\)'/\1/g"
    id=$(tr a-z A-Z <<<"$1") # stands for the job that sbatch would name
  else
    id=$("${line[@]}")
    id=${id%%;*}
    echo "$1: job $id${4:+, customers ${4%\%*}}"
  fi
  submitted=yes
}

stale=$(awk 'NR > 1 && $4 == "stale" { print $3 }' <<<"$stages" | paste -sd,)
[ -z "$stale" ] || echo "pipeline.sh: of other settings or inputs than now: $stale; remove these folders, or their jobs refuse to replace them" >&2

# ---- the provider
submitted=''
provider=$(queued provider %A)
if [ -z "$provider" ] && awk '$1 == "0" && $4 != "done" { found = 1 } END { exit !found }' <<<"$stages"; then
  submit provider "$size_train" '' '' "$jobs/provider.sbatch"
  provider=$id
fi

# ---- customers: those with anything left to do that is not in the queue
open=$(awk 'NR > 1 && $1 > 0 && $4 != "done" { print $1 }' <<<"$stages" | sort -u)
waiting=$(queued user,merge,eval %K)
customers=$(comm -23 <(echo "$open") <(echo "$waiting" | sort) | sort -n | paste -sd,)
if [ -n "$customers" ]; then
  array=$customers%$customers_at_once
  submit user "$size_train" "${provider:+afterok:$provider}" "$array" "$jobs/user.sbatch"
  submit merge "$size_small" "aftercorr:$id" "$array" "$jobs/merge.sbatch"
  submit eval "$size_small" "aftercorr:$id" "$array" "$jobs/eval.sbatch"
  evaluation=$id
  if [ -n "$publish" ]; then # who has no evaluation has passed no gate, though the task of eval.sbatch that does nothing succeeds
    judged=$(awk -v customers=",$customers," '$2 == "eval" && $4 != "done" && index(customers, "," $1 ",") { print $1 }' <<<"$stages" | sort -un | paste -sd,)
    [ -z "$judged" ] || submit publish '' "aftercorr:$evaluation" "$judged%$customers_at_once" "$publish"
  fi
fi

# ---- the report, when the last of them is through, however it ended
if [ -n "${evaluation:-}" ]; then
  submit report '' "afterany:$evaluation" '' "$jobs/report.sbatch"
elif [ -n "$submitted" ]; then
  :
elif [ -n "$provider$waiting" ]; then
  echo "nothing to submit: what is open is in the queue (squeue --me)"
else
  echo "nothing to submit: everything is done ($program run $config${options[*]:+ ${options[*]}} --show report)"
fi
