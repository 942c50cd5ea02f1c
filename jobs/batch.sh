# shellcheck shell=bash
# What every batch script does: read the site's facts, load modules, find out when the allocation ends, start the ranks, hand them the signals
# that Slurm sends, and go back into the queue when the program stopped at a checkpoint. Sourced by *.sbatch, in a job.
set -euo pipefail

# ---- signals: from the first line on ----------------------------------------------------------------------------------

# srun and mpirun pass SIGUSR1 on to every rank; SIGTERM mpirun takes as an order to kill. So a first SIGTERM becomes a SIGUSR1: stop at a
# checkpoint. Slurm sends SIGTERM twice at the time limit: only one that comes later is the second, which ends the job at once. One that comes
# while there are no ranks is kept, in $early; the batch script's own first line keeps one that comes before this file is found.
ranks='' early=${early:-}
forward() {
  signalled=yes
  if [ -z "$ranks" ]; then
    early=$1
    return
  fi
  if [ "$1" = TERM ] && [ -n "${first_term:-}" ] && [ $SECONDS -gt $((first_term + 1)) ]; then
    say "a second SIGTERM: the ranks leave at once"
    kill -TERM "$ranks" 2>/dev/null || true
    return
  fi
  [ "$1" != TERM ] || first_term=${first_term:-$SECONDS}
  say "SIG$1: asking the ranks to stop at a checkpoint"
  kill -USR1 "$ranks" 2>/dev/null || true
}
trap 'forward USR1' USR1
trap 'forward TERM' TERM

# ---- the job ----------------------------------------------------------------------------------------------------------

# A task of an array has a number of its own, but the first one's means the whole array to squeue and scontrol.
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
job=${job:-$SLURM_JOB_ID}

say() { echo "$(date '+%F %T') job $job: $*"; }

[ -n "${1:-}" ] || { say "no argument: the head of the batch script says what it takes" >&2; exit 64; }
config=$1            # a pipeline; scaling.sbatch: a folder
options=("${@:2}") # of the program

jobs=$(dirname "${BASH_SOURCE[0]}")
. "$jobs/site.sh"

# One thread a rank, or as many as the job asked for cores a rank (which srun has to be told a second time).
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-${OMP_NUM_THREADS:-1}}
[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK

# The program stops while a checkpoint still fits if it knows when the allocation ends. Newer Slurm says so in the environment; a value of the
# past comes from the job that this one was submitted in.
if [ "${SLURM_JOB_END_TIME:-0}" -le "$(date +%s)" ]; then
  unset SLURM_JOB_END_TIME
  if ends=$(squeue --noheader --jobs="$job" --format=%e) && ends=$(date --date="$ends" +%s 2>/dev/null); then
    export SLURM_JOB_END_TIME=$ends
  fi
fi

# What becomes of the stages is $stages. An input that is missing is said after the list and does not count here: it may be somebody else's, and of
# their own stages the ranks speak.
look_at_stages() {
  local failed=0
  stages=$("$program" run "$config" --show stages "${options[@]}") || failed=$?
  [ -n "$stages" ] || return "$failed"
}

# stages_of WHOSE COMMAND [open|stale|unfit]: names in $stages, separated by commas, of the stages of `provider`, or of this task's customer (all
# customers where the job is no array); COMMAND train, merge, eval, or any; only those in that state.
stages_of() {
  awk -v whose="$1" -v command="$2" -v state="${3:-}" -v task="${SLURM_ARRAY_TASK_ID:-}" '
    NR > 1 && (whose == "provider" ? $1 == 0 : $1 > 0 && (task == "" || $1 == task)) && (command == "any" || $2 == command) && (state == "" || $4 == state) {
      printf "%s%s", found++ ? "," : "", $3
    }' <<<"$stages"
}

# ---- ranks ------------------------------------------------------------------------------------------------------------

# run_ranks argument...: the program on all tasks of the job, or the first $tasks of them; its exit code is $code. A signal that came before ends
# the job here, where nothing is lost.
run_ranks() {
  local start=(srun --mpi=pmix --kill-on-bad-exit=1 --ntasks="${tasks:-$SLURM_NTASKS}")
  case $launcher in
    srun) ;;
    mpirun)
      start=(mpirun -n "${tasks:-$SLURM_NTASKS}")
      [ "${SLURM_CPUS_PER_TASK:-1}" -eq 1 ] || start+=(--map-by "slot:PE=$SLURM_CPUS_PER_TASK")
      ;;
  esac
  if [ -n "$early" ]; then
    say "SIG$early came before the ranks were started"
    [ "$early" != USR1 ] || say "where nobody sent it: --time is shorter than the notice that --signal=B:USR1@SECONDS asks for"
    leave 75
  fi
  say "start ${SLURM_RESTART_COUNT:-0} on $SLURM_JOB_NODELIST, ${start[*]} $launcher_options $program $*"
  "${start[@]}" $launcher_options "$program" "$@" &
  local started=$!
  sleep 1 # a process that is still a copy of this shell would lose a signal
  ranks=$started
  if [ -n "$early" ]; then # it came while they were being started
    forward "$early"
    early=''
  fi
  signalled=yes
  while [ -n "$signalled" ]; do # a signal ends `wait`, not the ranks
    signalled=
    code=0
    wait "$ranks" || code=$?
  done
  ranks='' # nobody is left to be told
}

# ---- what becomes of the job ------------------------------------------------------------------------------------------

# Ends the job: back into the queue where the program stopped at a checkpoint, unless somebody has cancelled the job meanwhile.
leave() {
  say "exit code $1"
  [ "$1" -ne 138 ] || set -- 75 # SIGUSR1 came before the ranks were up: nothing is lost
  [ "$1" -eq 75 ] || exit "$1"
  if [ "${SLURM_RESTART_COUNT:-0}" -ge "$most_restarts" ]; then
    say "not done, but started $most_restarts times already (most_restarts in site.conf): submit it again to go on"
  elif [ "$(squeue --noheader --jobs="$job" --format=%T)" = RUNNING ]; then
    say "back into the queue"
    trap '' TERM # which comes with the requeue
    scontrol requeue "$job" || say "cannot be requeued: submit it again to go on"
  fi
  exit 75
}

# run_stages WHOSE COMMAND: all that a batch script of a pipeline does. srun can end with 0 although it started no rank, when a node was not ready
# for a job that has just been requeued; so the stages have the last word.
run_stages() {
  local names open stale unfit
  look_at_stages
  names=$(stages_of "$1" "$2")
  [ -n "$names" ] || { say "nothing to do: no stage of $1 is a $2"; exit 0; }
  run_ranks run "$config" --only "$names" "${options[@]}"
  if [ "$code" -eq 0 ]; then
    look_at_stages
    open=$(stages_of "$1" "$2" open)
    [ -z "$open" ] || { say "$launcher reports no failure, but $open is not done"; code=75; }
    stale=$(stages_of "$1" "$2" stale)
    [ -z "$stale" ] || [ "$code" -ne 0 ] || { say "$stale is of other settings or inputs than now, or was made from what is"; code=73; }
    unfit=$(stages_of "$1" "$2" unfit)
    [ -z "$unfit" ] || [ "$code" -ne 0 ] || { say "$unfit misses max-hs or min-fa: not fit to leave"; code=76; }
  fi
  leave "$code"
}
