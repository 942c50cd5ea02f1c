#!/usr/bin/env bash
# --precision: bf16 learns as fp32 does, with the same bits on any number of ranks; auto takes what this CPU has, says why, and stays with what an output
# folder was begun in.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

model=$BW_TEST_DATA/golden/tiny/model
rows 40 >rows.jsonl
settings=(--model "$model" --template plain --data rows.jsonl --micro-batches 4 --lr 1e-3 --lora-r 5 --lora-alpha 10 --lora-dropout 0.1)
recorded() { sed -n 's/^precision: //p' "$1/config.yaml"; } # FOLDER

note "auto"
run 1 train "${settings[@]}" --stage sft --steps 1 --precision auto --output auto
best=$(recorded auto)
case $best in
  fp32) grep -q "; not oneDNN in bf16: " out || fail "nobody says why auto is fp32" ;;
  bf16) grep -q "oneDNN [0-9.]*, bf16 by" out || fail "nobody says what auto took" ;;
  *) fail "auto is recorded as '$best'" ;;
esac
note "auto is $best: $(sed -n 's/^breakwater [^,]*, //p' out)"
run 2 train "${settings[@]}" --stage sft --steps 1 --precision "$best" --output "$best-by-name"
same_adapter auto "$best-by-name" "auto and what it came to"

note "the loss of 100 steps beside fp32's"
for precision in fp32 bf16; do
  run 1 train "${settings[@]}" --stage buffer --steps 100 --precision "$precision" --output "curve-$precision"
  sed -n 's/.*"loss": \([0-9.]*\),.*/\1/p' "curve-$precision/metrics.jsonl" >"$precision.txt"
  [ "$(wc -l <"$precision.txt")" -eq 100 ] || fail "not 100 losses in $precision"
done
[ "$(recorded curve-bf16)" = bf16 ] || fail "config.yaml does not say bf16"
[ "$(sha curve-bf16)" != "$(sha curve-fp32)" ] || fail "bf16 is the same as fp32"
paste fp32.txt bf16.txt | awk '{ d = $2 / $1 - 1; d = d < 0 ? -d : d; most = d > most ? d : most; last = $1; if (NR == 1) first = $1 }
  END { printf "loss %.4f to %.4f, most apart %.3f%%\n", first, last, 100 * most; exit !(most < 0.01 && last < 0.9 * first) }' ||
  fail "the curves are more than 1% apart, or nothing was learned"

note "the same bits on any number of ranks, on a BufferLoRA beside the weights"
user=(train "${settings[@]}" --stage user --buffer curve-bf16/adapter --seed 8 --steps 6 --precision bf16)
run 1 "${user[@]}" --output user-1
grep -q "packed bf16" out || fail "the weights are not packed"
same() { # NAME RANKS option...
  run "$2" "${user[@]}" --output "$1" "${@:3}"
  same_adapter user-1 "$1" "${*:2}"
}
same user-2 2
same user-3 3 --weights stream --grid 3x1
same user-4 4 --grid 2x2 --recompute layer
same user-nodes 4 --ranks-per-node 2 --weights stream --block 5

note "a folder that was begun in another precision than auto would take"
other=$([ "$best" = fp32 ] && echo bf16 || echo fp32)
long=(train "${settings[@]}" --stage sft --steps 60 --checkpoint-steps 20)
run 1 "${long[@]}" --precision "$other" --output whole
cp -r whole begun
rm -r begun/adapter begun/checkpoints/step-000060.h5
expect_fail 73 "precision: $other, this run $best" 1 "${long[@]}" --precision "$best" --output begun
run 2 "${long[@]}" --precision auto --output begun
warnings | grep -q -- "--precision auto is $best here .*, and begun was begun in $other: it goes on in $other" || fail "nobody says that it goes on in $other"
grep -q "resuming after step 40 of 60" out || fail "it did not go on"
same_adapter whole begun "gone on with in $other"
run 1 "${long[@]}" --precision auto --output begun
grep -q "stage sft is done" out || fail "what is done in $other is not known as done"

note "stages of a pipeline, each in its own"
cat >job.yaml <<END
model: $model
output: job
template: plain
steps: 2
micro-batches: 2
lora-r: 3
max-new: 4
precision: auto
data: rows.jsonl
stages:
  - {name: first, command: train, stage: sft, precision: $other}
  - {name: second, command: train, stage: sft}
  - {name: eval, command: eval, task: rows.jsonl, limit: 4, adapter: "@first/adapter", precision: $other}
END
run 2 run job.yaml
[ "$(recorded job/first) $(recorded job/second) $(recorded job/eval)" = "$other $best $other" ] || fail "a stage's own precision does not hold"
run 0 run job.yaml --show stages
[ "$(awk 'NR > 1 { print $4 }' out | paste -sd' ')" = "done done done" ] || fail "what is done is stale"

note "done"
