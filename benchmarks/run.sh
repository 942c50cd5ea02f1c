#!/usr/bin/env bash
# Breakwater beside torch + PEFT on the reference job, in turn on the same machine: rows of SmolLM2-135M in the alpaca prompt, r 32, alpha 64,
# targets q,v,gate,up,down, 8 rows a step, at most 512 tokens a row. Writes results.csv, ratios.txt and a plot to the output folder.
#   benchmarks/run.sh MODEL.gguf|FOLDER OUTPUT
# Settings, from the environment: those of lib.sh, and
#   ROUNDS 2  STEPS 12  WARM_UP 3  RANKS (all THREADS: ours as a rank a core; 1: as one rank with all threads)
#   PEERS        which configurations of the peer run, of: authors tuned tuned-dropout packed compile authors-bf16 bf16 bf16-dropout bf16-compile
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
[ $# -eq 2 ] || { sed -n '2,4p' "$0" | cut -c3- >&2; exit 64; }
rounds=${ROUNDS:-2} steps=${STEPS:-12} warm_up=${WARM_UP:-3}
. "$here/lib.sh"
take_folders "$1" "$2"
ranks=${RANKS:-$threads}

# The peer's configurations: name, then options of peer_peft.py.
peers=(
  "authors          --layout padded --dropout 0.1"
  "tuned            --layout sorted --answer-logits"
  "tuned-dropout    --layout sorted --answer-logits --dropout 0.1"
  "packed           --layout packed --answer-logits"
  "compile          --layout sorted --answer-logits --compile"
  "authors-bf16     --layout padded --dropout 0.1 --precision bf16-lora32-autocast"
  "bf16             --layout sorted --answer-logits --precision bf16"
  "bf16-dropout     --layout sorted --answer-logits --precision bf16 --dropout 0.1"
  "bf16-compile     --layout sorted --answer-logits --precision bf16 --compile"
)
precisions=(fp32)
wanted=" ${PEERS:-authors tuned tuned-dropout packed compile} "
if "$program" --version | grep -q 'in bf16 *oneDNN' || [[ $wanted == *bf16* ]]; then # where this CPU is fast in bf16, or when asked for by name
  precisions+=(bf16)
  wanted=" ${PEERS:-authors tuned tuned-dropout packed compile authors-bf16 bf16 bf16-dropout bf16-compile} "
fi

python=${BW_PYTHON:-$(python_of_the_peer)}
make_rows
folder=$(folder_of_the_peer)

# ours ROUND NAME RANKS THREADS PRECISION DROPOUT: a line of CSV, the median over the steps after the warm-up.
ours() {
  local round=$1 name=$2 ranks=$3 each=$4 precision=$5 dropout=$6 folder="$out/ours-$2"
  rm -rf "$folder"
  echo "round $round: breakwater $name" >&2
  mpirun --oversubscribe --bind-to none -n "$ranks" "$program" train --stage sft --model "$model" --data "$out/rows.jsonl" --output "$folder" \
    --steps $((steps + warm_up)) --batch 8 --lora-dropout "$dropout" --precision "$precision" --threads "$each" --resume never \
    --checkpoint-steps 0 --checkpoint-minutes 0 --quiet >"$out/ours-$name.log"
  python3 "$here/results.py" ours "$folder" "$warm_up" "$round,breakwater,$name,$precision,$dropout,$ranks,$each" >>"$out/results.csv"
}

# peer ROUND NAME option...
peer() {
  local round=$1 name=$2
  shift 2
  echo "round $round: peer $name" >&2
  "$python" "$here/peer_peft.py" --name "$name" --model "$folder" --data "$out/rows.jsonl" --threads "$threads" --steps "$steps" \
    --warm-up "$warm_up" "$@" 2>>"$out/peer.log" >"$out/peer-$name.json"
  python3 "$here/results.py" peer "$out/peer-$name.json" "$round" >>"$out/results.csv"
}

echo "round,program,name,precision,dropout,ranks,threads,tokens_per_s,peak_rss_mib,steps,load" >"$out/results.csv"
for ((round = 1; round <= rounds; round++)); do
  for row in "${peers[@]}"; do
    read -r name options <<<"$row"
    [[ $wanted == *" $name "* ]] || continue
    precision=fp32 dropout=0
    [[ $name != *bf16* ]] || precision=bf16
    [[ $options != *"--dropout 0.1"* ]] || dropout=0.1
    [[ " ${precisions[*]} " == *" $precision "* ]] || continue
    # Ours under the same settings just before the peer: what disturbs the machine disturbs both.
    ours "$round" "$precision-dropout-$dropout-before-$name" "$ranks" $((threads / ranks)) "$precision" "$dropout"
    # shellcheck disable=SC2086 # options are words
    peer "$round" "$name" $options
  done
  [ "$threads" -lt 2 ] || ours "$round" fp32-other-layout $((ranks == 1 ? threads : 1)) $((ranks == 1 ? 1 : threads)) fp32 0
done
python3 "$here/results.py" ratios "$out/results.csv" | tee "$out/ratios.txt"
if command -v gnuplot >/dev/null; then
  python3 "$here/results.py" bars "$out/results.csv" >"$out/bars.dat"
  gnuplot -e "data='$out/bars.dat'; picture='$out/throughput.svg'" "$here/plot.gp"
else
  echo "no gnuplot (a Debian package): no plot" >&2
fi
