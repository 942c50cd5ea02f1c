#!/usr/bin/env bash
# Elastic determinism: the adapter has the same bytes on any number of ranks, any grid, any way of holding the weights.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

model=$BW_TEST_DATA/golden/tiny/model
rows 30 >rows.jsonl
settings=(--model "$model" --template plain --data rows.jsonl --micro-batches 4 --steps 6 --lr 1e-3 --lora-r 5 --lora-alpha 10
  --lora-dropout 0.1 --targets q,k,v,o,gate,up,down)

# same NAME RANKS option...: trains as `reference` was trained, with options that must not matter.
same() {
  local name=$1 ranks=$2
  shift 2
  run "$ranks" train "${settings[@]}" "${stage[@]}" --output "$name" "$@"
  same_adapter "$reference" "$name" "$ranks ranks $*"
  rm -r "$name"
}

note "plain stage"
stage=(--stage sft)
reference=sft-1
run 0 train "${settings[@]}" "${stage[@]}" --output sft-1
same two 2
same three 3
same four 4
same grid-1x2 2 --grid 1x2
same grid-2x1 2 --grid 2x1
same grid-2x2 4 --grid 2x2
same grid-1x3 3 --grid 1x3
same grid-3x1 3 --grid 3x1
same replicas 4 --grid 1x2 --replicas 2
same resident 2 --weights resident
same stream-1 1 --weights stream
same stream-4 4 --weights stream --grid 2x2
same recompute 2 --recompute layer
same nodes-of-1 2 --ranks-per-node 1
same nodes-of-2 4 --ranks-per-node 2 --weights stream
same block 3 --block 5
same block-1x2 4 --block 5 --grid 1x2 --replicas 2 --ranks-per-node 1

note "more ranks than micro-batches"
run 5 train "${settings[@]}" "${stage[@]}" --output five
same_adapter sft-1 five "5 ranks for 4 micro-batches"
grep -q "1 ranks* idle" err || fail "nobody said that a rank idles"

note "on a BufferLoRA"
run 2 train "${settings[@]}" --stage buffer --seed 7 --output buffer
stage=(--stage user --buffer buffer/adapter --seed 8)
reference=user-1
run 1 train "${settings[@]}" "${stage[@]}" --output user-1
same user-2 2 --weights stream
same user-3 3 --grid 3x1 --block 5
same user-4 4 --grid 2x2 --recompute layer
run 1 train "${settings[@]}" --stage sft --seed 8 --output without
[ "$(sha without)" != "$(sha user-1)" ] || fail "the BufferLoRA changes nothing"

note "another seed gives another adapter, so the comparisons above can fail"
run 1 train "${settings[@]}" --stage sft --seed 43 --output other-seed
[ "$(sha other-seed)" != "$(sha sft-1)" ] || fail "the seed changes nothing"
note "done"
