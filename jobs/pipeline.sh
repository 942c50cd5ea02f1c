#!/usr/bin/env bash
# Submit a pipeline to Slurm: the provider's stages once; for every customer, a task of an array each, user, merge and eval; then the report.
#   jobs/pipeline.sh CONFIG.yaml [--dry-run] [--publish FILE.sbatch] [--option value ...]
# CONFIG.yaml is what `breakwater run` takes, and the options are those of `breakwater run`. A customer is a train stage `user` (or `sft`) and
# all that refers to it. What is done or in the queue, for this file and its output folder and whatever the other options, is not submitted again:
# repeat the command when customers were added or a job failed.
# FILE.sbatch gets an array task for each customer whose evaluation is submitted now, or is in the queue, and passes (max-hs, min-fa), and
# CONFIG.yaml as its argument. Who was evaluated before is published by hand: sbatch --array=CUSTOMER,... FILE.sbatch CONFIG.yaml.
set -euo pipefail
jobs=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
help=$(sed -n '2,${/^#/!q;s/^# \{0,1\}//p}' "$0")
for word in "$@"; do
  case $word in -h | --help) echo "$help"; exit 0 ;; esac
done
. "$jobs/site.sh"

# Which options take no value the program knows: --[no-]quiet in its help.
flags=$(for command in run train merge eval; do "$program" "$command" --help; done | sed -n 's/^  --\[no-\]\([a-z0-9-]*\).*/ --\1 --no-\1 /p')
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
    --*=*) options+=("$1") ;;
    --*)
      options+=("$1")
      if [[ $flags != *" $1 "* && ${2:---} != --* ]]; then
        options+=("$2")
        shift
      fi
      ;;
    *) [ -z "$config" ] || { echo "pipeline.sh: one CONFIG.yaml, not '$config' and '$1'" >&2; exit 64; }; config=$1 ;;
  esac
  shift
done
[ -n "$config" ] || { printf 'pipeline.sh: no CONFIG.yaml in: %s\n%s\n' "${options[*]-}" "$help" >&2; exit 64; }

if [ -z "$dry_run" ]; then # fails early, and in words
  for tool in sbatch squeue; do
    command -v "$tool" >/dev/null && continue
    echo "pipeline.sh: there is no $tool here: submit where Slurm is; --dry-run needs none, nor does: $program run $config ${options[*]-}" >&2
    exit 69
  done
fi

# Two at once would both find the queue empty. What they share, on every login node, is the file; NFS locks only what is open for writing.
if [ -z "$dry_run" ] && [ -r "$config" ]; then
  if [ -w "$config" ]; then exec 9<>"$config"; else exec 9<"$config"; fi
  locked=0
  flock --wait 60 9 || locked=$?
  case $locked in
    0) ;;
    1) echo "pipeline.sh: another pipeline.sh is at work on $config: the same command again later" >&2; exit 75 ;;
    *) echo "pipeline.sh: $config cannot be locked here: see to it that nobody else submits it meanwhile" >&2 ;;
  esac
fi

# ---- what is in the queue, and what is done: in this order, or a job that ends between the two questions would be neither

# The jobs of this pipeline are named by the file and the folder that it writes to; another way to write either does not make another pipeline.
output=$("$program" run "$config" --show output ${options[@]+"${options[@]}"})
mark=$(printf '%s\n' "$(realpath "$config")" "$(realpath -m -- "$output")" | cksum | cut -d' ' -f1)

# $queue: name, job and customer of all jobs of this pipeline that wait or run. A dry run needs no Slurm: where none answers soon (the client alone
# would try for a minute) the queue counts as empty.
ask=(squeue --noheader --array --me --name="$(printf "%s-$mark," provider user merge eval publish report)" --format='%j %F %K')
if [ -z "$dry_run" ]; then
  queue=$("${ask[@]}") || { echo "pipeline.sh: squeue does not say what is in the queue: nothing is submitted" >&2; exit 69; }
elif ! queue=$(timeout 10 "${ask[@]}" 2>/dev/null); then
  queue=''
  echo "pipeline.sh: no Slurm answers here: shown as if nothing were in the queue" >&2
fi

stages=$("$program" run "$config" --show stages ${options[@]+"${options[@]}"})

# stages_in CONDITION FIELD: the column of what fits, each once, in the order of the file; a condition of awk.
stages_in() { awk "NR > 1 && ($1) && !seen[\$$2]++ { print \$$2 }" <<<"$stages"; }

# queued NAME|NAME FIELD: a column of $queue, each value once.
queued() { sed -nE "s/^($1)-[0-9]+ //p" <<<"$queue" | cut -d' ' -f"$2" | sort -u; }

list() { sort -n | paste -sd,; }

stale=$(stages_in '$4 == "stale"' 3 | paste -sd,)
[ -z "$stale" ] || echo "pipeline.sh: of other settings or inputs than now: $stale; jobs refuse to replace them: remove these folders, and say the same command again" >&2
unfit=$(stages_in '$4 == "unfit"' 3 | paste -sd,)
[ -z "$unfit" ] || echo "pipeline.sh: evaluated, and not fit to leave (max-hs, min-fa): $unfit; the figures: $program run $config${options[*]:+ ${options[*]}} --show report" >&2

# submit NAME SIZE DEPENDENCY ARRAY SCRIPT: the job is $id.
submitted=''
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

# ---- the provider: nothing of its is built upon, once it is known to be unfit or stale; a job that finds out stops its customers by itself (afterok)
for state in unfit:76 stale:73; do
  [ -n "$(stages_in "\$1 == 0 && \$4 == \"${state%:*}\"" 3)" ] || continue
  echo "pipeline.sh: that is the provider's: no customer is submitted" >&2
  exit "${state#*:}"
done
provider=$(queued provider 1)
if [ -z "$provider" ] && [ -n "$(stages_in '$1 == 0 && $4 != "done"' 3)" ]; then
  submit provider "$size_train" '' '' "$jobs/provider.sbatch"
  provider=$id
fi

# ---- customers: those with anything left to do that is not in the queue. Whose first open stage is stale gets no jobs, since they would refuse; but
# while the provider is at work nobody knows yet what will be stale.
refusing=$(awk 'NR > 1 && $4 != "done" && !seen[$1]++ { if ($1 == 0) exit; if ($4 == "stale") print $1 }' <<<"$stages")
evaluations=$(queued eval 1,2) # job and customer
waiting=$(queued 'user|merge|eval' 2)
report=$(queued report 1)
customers=$(comm -23 <(stages_in '$1 > 0 && $4 != "done" && $4 != "unfit"' 1 | sort) <(printf '%s\n' "$refusing" "$waiting" | sort) | list)
if [ -n "$customers" ]; then
  array=$customers%$customers_at_once
  submit user "$size_train" "${provider:+afterok:$provider}" "$array" "$jobs/user.sbatch"
  submit merge "$size_small" "aftercorr:$id" "$array" "$jobs/merge.sbatch"
  submit eval "$size_small" "aftercorr:$id" "$array" "$jobs/eval.sbatch"
  evaluations+=$'\n'$(sed "s/^/$id /" <<<"${customers//,/$'\n'}")
  report='' # the one in the queue does not wait for these
fi
evaluations=$(sed '/^$/d' <<<"$evaluations")
evaluating=$(cut -d' ' -f1 <<<"$evaluations" | sort -u)

# ---- publishing: who has no evaluation has passed no gate, though the task of eval.sbatch that does nothing succeeds
if [ -n "$publish" ]; then
  unpublished=$(comm -23 <(stages_in '$1 > 0 && $2 == "eval" && $4 != "done" && $4 != "unfit"' 1 | sort) <(queued publish 2))
  for job in $evaluating; do
    judged=$(comm -12 <(sed -n "s/^$job //p" <<<"$evaluations" | sort) <(echo "$unpublished") | list)
    [ -z "$judged" ] || submit publish '' "aftercorr:$job" "$judged%$customers_at_once" "$publish"
  done
  passed=$(comm -23 <(stages_in '$1 > 0 && $2 == "eval" && $4 == "done"' 1 | sort) <({ stages_in '$1 > 0 && $4 != "done"' 1; queued publish 2; } | sort) | list)
  [ -z "$passed" ] || echo "evaluated before, and fit; who is not published yet: sbatch --array=$passed $publish $config${options[*]:+ ${options[*]}}"
fi

# ---- the report, when the last evaluation is through, however it ended
if [ -n "$evaluating" ] && [ -z "$report" ]; then
  submit report '' "afterany:$(paste -sd: <<<"$evaluating")" '' "$jobs/report.sbatch"
fi

[ -z "$submitted" ] || exit 0
if [ -n "$provider$waiting" ]; then
  echo "nothing to submit: what is open is in the queue (squeue --me)"
else
  echo "nothing to submit: everything is done ($program run $config${options[*]:+ ${options[*]}} --show report)${refusing:+ but what is named above}${unfit:+; what is not fit is named above}"
fi
