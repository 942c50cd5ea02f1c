#!/usr/bin/env bash
# Holds `breakwater plan` against real runs: three models with random weights, one and two ranks, resident and streamed.
# usage: plan.sh memory|time|cpu TOKENIZER_FOLDER MACHINE.yaml [FOLDER]      BREAKWATER=program PYTHON=python3 with numpy  MPIRUN="mpirun ..." SIZES="small medium large" STEPS=6 PRECISION=fp32|bf16
# memory: every byte a run counts (report.txt: all ranks), against the plan's. time: seconds of a thousand tokens, after the first step; wants an idle
# machine. cpu: where none is to be had, the same in processor seconds on one rank (a run of STEPS less one of a step), which other work lengthens less.
set -euo pipefail
what=${1:?memory, time or cpu} tokenizer=${2:?a model folder with a tokenizer} machine=${3:?machine file} work=${4:-$(mktemp -d)}
here=$(cd "$(dirname "$0")" && pwd)
breakwater=${BREAKWATER:-breakwater} python=${PYTHON:-python3} steps=${STEPS:-$([ "$what" = memory ] && echo 2 || echo 6)}
export OMP_NUM_THREADS=1 OMPI_MCA_hwloc_base_binding_policy=none OMPI_MCA_mpi_yield_when_idle=1
launch=${MPIRUN:-mpirun --oversubscribe --bind-to none}
sizes=${SIZES:-small medium large}
[ "$what" = memory ] || [ "$steps" -ge 2 ] || { echo "plan.sh: STEPS=$steps: the first step is left out, so it takes two" >&2; exit 64; }
mkdir -p "$work"

shape() {
  case $1 in
  small) echo --layers 6 --width 384 --mlp 1024 --heads 6 --kv 2 ;;
  medium) echo --layers 12 --width 768 --mlp 2048 --heads 12 --kv 4 ;;
  large) echo --layers 16 --width 1536 --mlp 4096 --heads 24 --kv 8 ;;
  esac
}

rows() { # 64 rows of uneven lengths
  awk 'BEGIN { srand(7); for (i = 1; i <= 64; i++) {
    printf "{\"instruction\": \"Row %d:", i; for (w = 0; w < 10 + int(rand() * 60); w++) printf " word%d", int(rand() * 900)
    printf ".\", \"output\": \"Answer"; for (w = 0; w < 10 + int(rand() * 40); w++) printf " %d", int(rand() * 900); print "\"}" } }'
}

quietly() { "$@" >"$work/log" 2>&1 || { cat "$work/log" >&2; echo "plan.sh: failed: $*" >&2; exit 1; }; }

# field FILE NAME: of the one row of a plan's CSV.
field() { awk -F, -v name="$2" 'NR == 1 { for (i = 1; i <= NF; i++) if ($i == name) at = i } NR == 2 { print $at }' "$1"; }

# Bytes that all ranks counted at their peaks, from the table after "memory, bytes at peak".
counted() { awk '/^memory of rank/ { inside = 0 } inside { sum += $NF } /^memory, bytes at peak/ { inside = 1 } END { print sum }' "$1"; }
# after_first FILE tokens|seconds: summed over the steps after the first. Steps differ in their tokens, so times are compared by the token.
after_first() { sed -n "s/.*\"$2\": \([0-9.]*\),.*/\1/p" "$1" | tail -n +2 | awk '{ sum += $1 } END { print sum }'; }

# user_seconds COMMAND...: processor seconds, system included.
user_seconds() {
  local TIMEFORMAT='%U %S'
  { time quietly "$@" 2>&3; } 3>&2 2>&1 | awk '{ print $1 + $2 }'
}

rows >"$work/rows.jsonl"
common="--data $work/rows.jsonl --template plain --max-length 256 --batch 8 --seed 3 --precision ${PRECISION:-fp32}"
echo "# $what, ${PRECISION:-fp32}; $(nproc --all) cores, load before: $(cut -d' ' -f1-3 /proc/loadavg)"
printf '%-8s %5s %-9s %14s %14s %7s\n' model ranks weights planned real ratio
for size in $sizes; do
  model=$work/$size
  [ -e "$model/model.safetensors.index.json" ] || "$python" "$here/random_model.py" "$model" "$tokenizer" $(shape "$size")
  [ -e "$work/$size-buffer/adapter" ] || quietly "$breakwater" train --stage buffer --model "$model" $common --steps 1 --output "$work/$size-buffer" --threads 1
  for ranks in $([ "$what" = cpu ] && echo 1 || echo 1 2); do
    for weights in resident stream; do
      out=$work/run
      train=("$breakwater" train --stage user --model "$model" --buffer "$work/$size-buffer/adapter" $common --micro-batches 4
        --weights "$weights" --output "$out" --threads 1)
      rm -rf "$out"
      if [ "$what" = cpu ]; then
        short=$(user_seconds "${train[@]}" --steps 1)
        rm -rf "$out"
        long=$(user_seconds "${train[@]}" --steps "$steps")
      else
        quietly $launch -n "$ranks" "${train[@]}" --steps "$steps"
      fi
      quietly "$breakwater" plan --stage user --model "$model" --machine "$machine" $common --micro-batches 4 --weights "$weights" --steps "$steps" \
        --grid auto --replicas 1 --ranks "$ranks" --csv "$work/plan.csv"
      if [ "$what" = time ]; then
        planned=$(field "$work/plan.csv" tokens_per_s | awk '{ print 1000 / $1 }')
        real=$(awk -v s="$(after_first "$out/metrics.jsonl" seconds)" -v t="$(after_first "$out/metrics.jsonl" tokens)" 'BEGIN { print 1000 * s / t }')
      elif [ "$what" = cpu ]; then
        planned=$(field "$work/plan.csv" tokens_per_s | awk '{ print 1000 / $1 }')
        real=$(awk -v s="$short" -v l="$long" -v t="$(after_first "$out/metrics.jsonl" tokens)" 'BEGIN { print 1000 * (l - s) / t }')
      else
        planned=$(awk -v all="$(field "$work/plan.csv" node_bytes)" -v program="$(field "$work/plan.csv" program)" -v ranks="$ranks" \
          'BEGIN { print all - program * ranks }')
        real=$(counted "$out/report.txt")
      fi
      awk -v size="$size" -v ranks="$ranks" -v weights="$weights" -v planned="$planned" -v real="$real" \
        'BEGIN { printf "%-8s %5d %-9s %14.4g %14.4g %7.3f\n", size, ranks, weights, planned, real, planned / real }'
    done
  done
done
echo "# load after: $(cut -d' ' -f1-3 /proc/loadavg)"
