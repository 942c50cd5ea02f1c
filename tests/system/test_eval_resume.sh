#!/usr/bin/env bash
# An evaluation that is stopped again and again, each time after one batch a rank and on another number of ranks, ends with the answers of a quiet one.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
model=$BW_TEST_DATA/golden/tiny/model

rows 15 >rows.jsonl
eval=(eval --model "$model" --template plain --task rows.jsonl --harmful rows.jsonl --max-new 8 --eval-batch 2 --perplexity)
run 1 "${eval[@]}" --output whole
figures() { grep -vE '"(ranks|tokens|seconds|tokens_per_s)":' "$1/summary.json"; }

note "one batch a rank at a time"
starts=0
status=75
until [ "$status" -eq 0 ]; do
  starts=$((starts + 1))
  [ $starts -le 20 ] || fail "it does not come to an end"
  begin $((starts % 3 + 1)) "${eval[@]}" --time-limit 0.0001 --output parts
  end
  [ "$status" -eq 75 ] || [ "$status" -eq 0 ] || fail "exit code $status of start $starts"
  [ $starts -eq 1 ] || grep -Eq '^eval: going on after [0-9]+ answers and [0-9]+ batches of the perplexity$' out || fail "start $starts begins again"
done
[ $starts -ge 8 ] || fail "the limit did not stop it"
grep -Eq '^eval: going on after 30 answers and [1-9]' out || fail "the perplexity was not had in parts"
cmp whole/answers.jsonl parts/answers.jsonl || fail "other answers"
rate() { sed -n 's/.*"tokens_per_s": //p' "$1/summary.json"; }
tokens() { sed -n 's/.*"tokens": \([0-9]*\),/\1/p' "$1/summary.json"; }
[ "$(tokens parts)" -eq "$(tokens whole)" ] || fail "tokens of the last start only"
# Eight starts and more: with the seconds of one alone the rate were eight times as high and more; how busy the machine is moves it by less.
awk "BEGIN { exit !($(rate parts) < 5 * $(rate whole)) }" || fail "$(rate parts) tokens/s in parts, $(rate whole) at once: seconds of the last start only"
diff <(figures whole) <(figures parts) || fail "other figures"
[ "$(ls parts | grep -c part$)" -eq 0 ] || fail "answers.part stays behind"

note "of other settings, or damaged, they are not taken"
begin 2 "${eval[@]}" --time-limit 0.0001 --output other
end
[ "$status" -eq 75 ] && [ -s other/answers.part ] && [ "$(stat -c %a other/answers.part)" = 600 ] || fail "not stopped, or nothing is kept"
expect_fail 73 "other: .*other settings: 'limit: 0' there" 1 "${eval[@]}" --limit 14 --output other
cp other/answers.part kept
printf '\1' | dd of=other/answers.part bs=1 seek=60 conv=notrunc status=none
cmp -s kept other/answers.part && fail "the test changed nothing"
expect_fail 65 "other/answers.part: .*damaged" 2 "${eval[@]}" --output other
cp kept other/answers.part
echo >>other/answers.part
expect_fail 65 "other/answers.part: damaged: 1 bytes follow" 2 "${eval[@]}" --output other
cp kept other/answers.part
cut_in_half other/answers.part
expect_fail 65 "other/answers.part: .*damaged" 2 "${eval[@]}" --output other
run 2 "${eval[@]}" --output other --resume never
cmp whole/answers.jsonl other/answers.jsonl || fail "other answers after starting over"
note "done"
