#!/usr/bin/env bash
# How training scales on this machine, or on the nodes of an allocation: a few steps each of
#   strong    the same rows on more ranks             weak      rows that grow with the ranks
#   threads   one rank with more threads              replicas  all ranks, the model cut over all of them, or repeated in more and more replicas
# and how fast a checkpoint is written and read, beside MPI-IO alone in the same run.
#   benchmarks/scaling.sh OUTPUT --model PATH [--option value ...]        options of `breakwater train`
# Writes OUTPUT/scaling.csv, checkpoint.csv, scaling.md (both as tables) and, with gnuplot, scaling.svg. Efficiency: tokens/s of a core at work, against
# the first line of its kind. Between ranks: the share of a step in which rank 0 gathers or reduces (timeline.csv); one rank adds gradients there, too.
# Settings, from the environment:
#   BREAKWATER   the program (breakwater)
#   LAUNCHER     srun or mpirun (in an allocation srun, else mpirun), LAUNCH_OPTIONS further options of it
#   RANKS        "1 2 4 ...": doubled up to the tasks of the allocation, or the cores of this machine
#   EACH         threads of a rank (--cpus-per-task, or 1)
#   THREADS      "1 2 4 ...": of the one rank; doubled up to EACH in an allocation, to the cores here
#   STEPS (10), of which the first is not counted; BATCH (8, or as many as ranks): rows of a step in the strong lines; WEAK_BATCH (2): rows of a rank
#   KINDS        "strong weak threads replicas checkpoint"
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
[ $# -ge 3 ] || { sed -n '2,6p' "$0" | cut -c3- >&2; exit 64; }
out=$1
shift
fail() { echo "scaling.sh: $*" >&2; exit "${code:-1}"; }
command -v "${BREAKWATER:=breakwater}" >/dev/null || fail "no program '$BREAKWATER': BREAKWATER=PATH names it"

# doubled LAST: 1 2 4 ... and LAST.
doubled() { awk -v last="$1" 'BEGIN { for (i = 1; i < last; i *= 2) printf "%d ", i; print last }'; }

cores=$(nproc)
launcher=${LAUNCHER:-$([ -n "${SLURM_JOB_ID:-}" ] && echo srun || echo mpirun)}
each=${EACH:-${SLURM_CPUS_PER_TASK:-1}}
ranks=${RANKS:-$(doubled "${SLURM_NTASKS:-$cores}")}
threads=${THREADS:-$(doubled "$([ -n "${SLURM_JOB_ID:-}" ] && echo "$each" || echo "$cores")")}
most=$(printf '%s\n' $ranks | sort -n | tail -n 1)
steps=${STEPS:-10} batch=${BATCH:-$((most > 8 ? most : 8))} weak=${WEAK_BATCH:-2} kinds=" ${KINDS:-strong weak threads replicas checkpoint} "
[ "$steps" -ge 2 ] || fail "STEPS=$steps: the first step is not counted, so at least 2"
options=("$@") model='' data=''
for ((i = 0; i < $#; i++)); do
  case ${options[i]} in
    --model=*) model=${options[i]#*=} ;;
    --data=*) data=yes ;;
    --model) model=${options[i + 1]:-} ;;
    --data) data=yes ;;
  esac
done
[ -n "$model" ] || fail "--model is missing"
mkdir -p "$out"

# As many rows as the largest step takes, of the same length, so that what is measured is not how unevenly they can be shared out.
if [ -z "$data" ]; then
  awk -v n=$((batch > weak * most ? batch : weak * most)) 'BEGIN { srand(1); for (i = 1; i <= n; i++) {
    printf "{\"instruction\": \"Say these words:"; for (w = 0; w < 70; w++) printf " %c%c", 97 + int(rand() * 26), 97 + int(rand() * 26)
    printf "\", \"output\": \"Here:"; for (w = 0; w < 70; w++) printf " %c%c", 97 + int(rand() * 26), 97 + int(rand() * 26); print "\"}" } }' >"$out/rows.jsonl"
  options+=(--data "$out/rows.jsonl" --template plain)
fi

# launch RANKS THREADS argument...: the program; its output goes to OUTPUT/log.
launch() {
  local start=()
  case $launcher in
    srun) start=(srun --mpi=pmix --kill-on-bad-exit=1 --ntasks="$1" --cpus-per-task="$2") ;;
    mpirun)
      start=(mpirun -n "$1")
      if [ -z "${SLURM_JOB_ID:-}" ]; then start+=(--oversubscribe --bind-to none); elif [ "$2" -gt 1 ]; then start+=(--map-by "slot:PE=$2"); fi
      ;;
    *) fail "LAUNCHER is '$launcher': srun or mpirun" ;;
  esac
  export OMP_NUM_THREADS=$2
  code=0
  "${start[@]}" ${LAUNCH_OPTIONS:-} "$BREAKWATER" "${@:3}" </dev/null >"$out/log" 2>&1 || code=$?
  [ "$code" -eq 0 ] || { tail -n 20 "$out/log" >&2; fail "exit code $code from: ${start[*]} $BREAKWATER ${*:3}"; }
}

# median FOLDER FIELD: over the steps after the first.
median() {
  sed -n "2,\$s/.*\"$2\": \([0-9.]*\).*/\1/p" "$1/metrics.jsonl" | sort -n | awk '{ a[NR] = $1 } END { print NR % 2 ? a[(NR + 1) / 2] : (a[NR / 2] + a[NR / 2 + 1]) / 2 }'
}

between_ranks() {
  awk -F, 'NR > 1 { $3 = $3 < 0 ? 0 : $3; end = $4 > end ? $4 : end } $1 == "gather" || $1 == "reduce" { sum += $4 - $3 } END { printf "%.3f", sum / end }' "$1/timeline.csv"
}

# measure KIND RANKS THREADS REPLICAS ROWS MICRO_BATCHES: a line of scaling.csv.
measure() {
  local folder=$out/$1-$2x$3-$4 rate
  rm -rf "$folder"
  launch "$2" "$3" train --stage sft --steps "$steps" --batch "$5" --micro-batches "$6" --threads "$3" --replicas "$4" --checkpoint-steps 0 \
    --checkpoint-minutes 0 --resume never --quiet "${options[@]}" --output "$folder"
  rate=$(median "$folder" tokens_per_s)
  alone=${alone:-$(awk -v rate="$rate" -v cores=$(($2 * $3)) 'BEGIN { print rate / cores }')}
  echo "$1,$2,$3,$4,$5,$rate,$(median "$folder" seconds),$(awk -v a="$alone" -v n="$rate" -v c=$(($2 * $3)) 'BEGIN { printf "%.3f", n / a / c }'),$(between_ranks "$folder")" |
    tee -a "$out/scaling.csv"
}

each_of() { # KIND
  local n alone=''
  [[ $kinds == *" $1 "* ]] || return 0
  case $1 in
    strong) for n in $ranks; do measure strong "$n" "$each" 0 "$batch" "$batch"; done ;;
    weak) for n in $ranks; do measure weak "$n" "$each" 0 $((weak * n)) "$n"; done ;;
    threads) for n in $threads; do measure threads 1 "$n" 0 "$batch" 1; done ;;
    replicas) for n in $(doubled "$most"); do [ $((most % n)) -ne 0 ] || measure replicas "$most" "$each" "$n" "$batch" "$most"; done ;;
  esac
}

tables() {
  echo "$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1), $cores cores, $launcher${SLURM_JOB_NODELIST:+ on $SLURM_JOB_NODELIST}; $("$BREAKWATER" --version | head -n 1); $(date +%F);"
  echo "load before: $before, after: $(cut -d' ' -f1-3 /proc/loadavg); $steps steps of $model"
  [ "$(wc -l <"$out/scaling.csv")" -lt 2 ] || awk -F, '
    NR == 1 { print "\n| kind | ranks x threads | replicas | rows of a step | tokens/s | s a step | efficiency | between ranks |\n|---|---|---|---|---|---|---|---|"; next }
    { printf "| %s | %s x %s | %s | %s | %.0f | %.3f | %.0f%% | %.0f%% |\n", $1, $2, $3, $4 ? $4 : "-", $5, $6, $7, 100 * $8, 100 * $9 }' "$out/scaling.csv"
  [ ! -e "$out/checkpoint.csv" ] || awk -F, '
    NR == 1 { print "\n| checkpoint | ms, median | GB/s | of MPI-IO |\n|---|---|---|---|"; next }
    { gsub("\"", ""); gsub(", ", "; ") } # no commas within a field
    $1 == "checkpoint" { printf "| %s | %.1f | %.3f | %s |\n", $2, 1e3 * $8, $10, ($14 > 0 ? sprintf("%.0f%%", 100 * $14) : "-") }' \
    "$out/checkpoint.csv"
}

before=$(cut -d' ' -f1-3 /proc/loadavg)
rm -f "$out"/{scaling.csv,checkpoint.csv,scaling.md,scaling.svg}
echo "kind,ranks,threads,replicas,rows,tokens_per_s,step_s,efficiency,between_ranks" | tee "$out/scaling.csv"
for kind in strong weak threads replicas; do each_of $kind; done
[[ $kinds != *" checkpoint "* ]] || launch "$most" "$each" bench --model "$model" --parts checkpoint --threads "$each" --output "$out" --csv "$out/checkpoint.csv"
tables >"$out/scaling.md"
echo && cat "$out/scaling.md"
if [ "$(wc -l <"$out/scaling.csv")" -lt 2 ]; then
  :
elif command -v gnuplot >/dev/null; then
  gnuplot -e "data='$out/scaling.csv'; picture='$out/scaling.svg'" "$here/scaling.gp"
else
  echo "no gnuplot: no plot; where there is one, gnuplot -e \"data='$out/scaling.csv'; picture='scaling.svg'\" $here/scaling.gp draws it"
fi
