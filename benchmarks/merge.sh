#!/usr/bin/env bash
# The QR merge of the five targets of a Llama-3-8B layer beside its formulas on dense matrices in torch, on all cores: in factors, and with the weights in
# bf16. Both sides in turn; the medians count, and the ratio of each round is shown.
#   benchmarks/merge.sh OUTPUT
# Settings, from the environment: those of lib.sh, ROUNDS 3, LAYERS 2 (of the peer, a round), REPETITIONS 5 (ours)
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
[ $# -eq 1 ] || { sed -n '4p' "$0" | cut -c3- >&2; exit 64; }
mkdir -p "$1"
out=$(realpath "$1")
. "$here/lib.sh"

python=${BW_PYTHON:-$(python_of_the_peer)}
rounds=${ROUNDS:-3}
for ((round = 1; round <= rounds; round++)); do
  mpirun --oversubscribe --bind-to none -n "$threads" "$program" bench --parts merge --threads 1 --lora-r 32 --repetitions "${REPETITIONS:-5}" \
    --csv "$out/merge-$round.csv" >"$out/merge-$round.log"
  "$python" "$here/peer_merge.py" --layers "${LAYERS:-2}" --threads "$threads" >"$out/peer-merge-$round.json"
done
python3 - "$out" "$rounds" <<'PYTHON'
import csv, json, statistics, sys
out, rounds = sys.argv[1], int(sys.argv[2])
peers = [json.load(open(f"{out}/peer-merge-{i + 1}.json")) for i in range(rounds)]
tables = [{row["problem"]: float(row["median_s"]) for row in csv.DictReader(open(f"{out}/merge-{i + 1}.csv"))} for i in range(rounds)]
for name, begins, field in (("in factors", "Llama-3-8B: a layer", "formulas_s"), ("dense bf16", "Llama-3-8B: the same, dense", "dense_bf16_s")):
    ours = [next(s for problem, s in table.items() if problem.startswith(begins)) for table in tables]
    theirs = [peer[field] for peer in peers]
    ratios = ", ".join(f"{t / o:.1f}" for t, o in zip(theirs, ours))
    print(f"a layer of Llama-3-8B, {name}: formulas {statistics.median(theirs):.3f} s, ours {statistics.median(ours):.4f} s:"
          f" {statistics.median(theirs) / statistics.median(ours):.1f} x (rounds: {ratios})")
PYTHON
