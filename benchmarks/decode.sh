#!/usr/bin/env bash
# Greedy decoding in batches beside transformers' generate: the same prompts, the same batch, in turn. Writes decode.csv and prints the ratios.
#   benchmarks/decode.sh MODEL.gguf|FOLDER OUTPUT
# Settings, from the environment: those of lib.sh, and ROUNDS 2  PROMPTS 80  BATCH 40  MAX_NEW 64  PRECISION fp32 (or bf16)
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
[ $# -eq 2 ] || { sed -n '2,4p' "$0" | cut -c3- >&2; exit 64; }
. "$here/lib.sh"
take_folders "$1" "$2"
prompts=${PROMPTS:-80} batch=${BATCH:-40} max_new=${MAX_NEW:-64} precision=${PRECISION:-fp32}
declare -A type_of=([fp32]=float32 [bf16]=bfloat16)
[ -n "${type_of[$precision]:-}" ] || { echo "PRECISION=$precision: fp32 or bf16" >&2; exit 64; }

python=${BW_PYTHON:-$(python_of_the_peer)}
make_rows
folder=$(folder_of_the_peer)

rate_in() { python3 -c 'import json, sys; r = json.load(open(sys.argv[1])); print(r["tokens_per_s"], r["tokens"])' "$1"; } # tokens/s, generated tokens

# ours RANKS THREADS, peer: what rate_in says.
ours() {
  mpirun --oversubscribe --bind-to none -n "$1" "$program" eval --model "$model" --task "$out/rows.jsonl" --limit "$prompts" --metric exact \
    --template chatml --max-new "$max_new" --eval-batch "$batch" --precision "$precision" --threads "$2" --resume never --output "$out/decode-$1x$2" --quiet >&2
  rate_in "$out/decode-$1x$2/summary.json"
}

peer() {
  "$python" "$here/peer_generate.py" --model "$folder" --data "$out/rows.jsonl" --rows "$prompts" --batch "$batch" --max-new "$max_new" \
    --threads "$threads" --precision "${type_of[$precision]}" 2>>"$out/peer.log" >"$out/peer-generate.json"
  rate_in "$out/peer-generate.json"
}

echo "round,program,ranks,threads,tokens_per_s,tokens" >"$out/decode.csv"
for ((round = 1; round <= ${ROUNDS:-2}; round++)); do
  read -r one tokens < <(ours 1 "$threads")
  echo "$round,breakwater,1,$threads,$one,$tokens" >>"$out/decode.csv"
  read -r other tokens < <(peer)
  echo "$round,generate,1,$threads,$other,$tokens" >>"$out/decode.csv"
  read -r many tokens < <(ours "$threads" 1)
  echo "$round,breakwater,$threads,1,$many,$tokens" >>"$out/decode.csv"
  awk -v a="$one" -v b="$other" -v c="$many" -v n="$threads" -v r="$round" \
    'BEGIN { printf "round %d: generate %.0f tokens/s; ours, one rank %.0f (%.2f x), %d ranks %.0f (%.2f x)\n", r, b, a, a / b, n, c, c / b }'
done
