#!/usr/bin/env bash
# The QR merge of the five targets of a Llama-3-8B layer, in factors, beside its formulas on dense matrices in torch.
#   benchmarks/merge.sh OUTPUT
# Settings, from the environment: those of lib.sh, and LAYERS 2 (of the peer)
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
[ $# -eq 1 ] || { sed -n '2,3p' "$0" | cut -c3- >&2; exit 64; }
mkdir -p "$1"
out=$(realpath "$1")
. "$here/lib.sh"

python=${BW_PYTHON:-$(python_of_the_peer)}
mpirun --oversubscribe --bind-to none -n "$threads" "$program" bench --parts merge --threads 1 --lora-r 32 --csv "$out/merge.csv" >"$out/merge.log"
"$python" "$here/peer_merge.py" --layers "${LAYERS:-2}" --threads "$threads" >"$out/peer-merge.json"
python3 - "$out" <<'PYTHON'
import csv, json, sys
out = sys.argv[1]
peer = json.load(open(f"{out}/peer-merge.json"))
ours = next(float(row["median_s"]) for row in csv.DictReader(open(f"{out}/merge.csv")) if row["problem"].startswith("Llama-3-8B"))
print(f"a layer of Llama-3-8B: formulas {peer['formulas_s']:.3f} s, ours in factors {ours:.4f} s: {peer['formulas_s'] / ours:.0f} x")
PYTHON
