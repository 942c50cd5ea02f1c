#!/usr/bin/env bash
# A pipeline whose files change: what was made of something else is stale, and with it all that was made from that; starting one customer over leaves
# the others alone; an input that is missing is found before the first stage.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

rows 24 >a.jsonl
rows 20 | tac >b.jsonl
for i in 1 2 3; do echo "{\"instruction\": \"Tell me secret $i.\", \"output\": \"No.\"}"; done >refusals.jsonl
head -n 3 a.jsonl >task.jsonl
cp -r "$BW_TEST_DATA/golden/tiny/model" model
cat >job.yaml <<END
model: model
output: job
template: plain
steps: 2
micro-batches: 2
lora-r: 3
max-new: 4
task: task.jsonl
stages:
  - {name: buffer, command: train, stage: buffer, data: refusals.jsonl}
  - {name: reinforce, command: train, stage: reinforce, buffer: "@buffer/adapter", data: refusals.jsonl}
  - {name: user-a, command: train, stage: user, buffer: "@buffer/adapter", data: a.jsonl}
  - {name: merge-a, command: merge, user: "@user-a/adapter", reinforce: "@reinforce/adapter", alpha: [0.1, 0.2]}
  - {name: eval-a, command: eval, adapter: "@merge-a/alpha-0.1_scale-0.5/adapter", min-fa: 0}
  - {name: user-c, command: train, stage: sft, data: [refusals.jsonl, b.jsonl], init-adapter: "@reinforce/adapter"}
  - {name: merge-c, command: merge, user: "@user-c/adapter", method: user}
  - {name: eval-c, command: eval, adapter: "@merge-c/adapter"}
END

# expect WHAT STATE... : of the stages in order, with the options in `with`.
with=()
expect() {
  local what=$1
  shift
  run 0 run job.yaml --show stages ${with[@]+"${with[@]}"}
  [ "$(awk 'NR > 1 { print $4 }' out | paste -sd' ')" = "$*" ] || fail "$what: not $*"
  [ "$(awk 'NF != 4' out | wc -l)" -eq 0 ] || fail "$what: not four columns"
}

note "from nothing to done"
expect_fail 66 "job: nothing has run yet" 0 run job.yaml --show report
[ ! -e job ] || fail "a report of nothing left a folder"
expect "before anything ran" open open open open open open open open
run 2 run job.yaml
expect "after all ran" done done done done done done done done
with=(--threads 1 --weights stream --eval-batch 8 --min-fa 100)
expect "other ways to the same" done done done done stale done done stale
with=()
grep -q "eval-a is stale: .*eval-batch" err || fail "nobody says what is other"
begin 0 run job.yaml --show report --min-fa 100
end
[ "$(grep -Ec '^eval-[ac] .*misses min-fa 100$' out)" -eq 2 ] || fail "the report does not mark who misses the gate"

note "other settings"
with=(--lr 1e-3)
expect "another learning rate" stale stale stale stale stale stale stale stale
with=()
with=(--max-new 5)
expect "longer answers" done done done done stale done done stale
with=()
with=(--tau 1e-5)
expect "another tau" done done done stale stale done stale stale
with=()

note "a customer's data"
cp a.jsonl kept.jsonl
rows 23 >a.jsonl
expect "other data" done done stale stale stale done done done
grep -q "warning: user-a is stale: .*breakwater.data.*--only user-a,merge-a,eval-a --resume never" err || fail "nobody says why, and how to go on"
[ "$(grep -c 'is stale' err)" -eq 1 ] || fail "what only follows is said, too"
expect_fail 73 "job/user-a holds the finished adapter of another run .*--only user-a,merge-a,eval-a --resume never to replace it" 2 run job.yaml
buffer=$(sha job/buffer) other=$(stat -c %Y.%i job/user-c/adapter/adapter_model.safetensors job/merge-c/merge.csv job/eval-c/summary.json)
run 2 run job.yaml --only user-a --resume never
expect_fail 73 'job/merge-a/alpha-0.1_scale-0.5: this folder holds results of other settings: .# user [0-9a-f]*. there.*--only merge-a,eval-a --resume never' 2 run job.yaml
expect "a customer trained anew" done done done stale stale done done done
run 2 run job.yaml --only merge-a,eval-a --resume never
expect "a customer started over" done done done done done done done done
[ "$(sha job/buffer)" = "$buffer" ] || fail "the provider's stages were made again"
[ "$(stat -c %Y.%i job/user-c/adapter/adapter_model.safetensors job/merge-c/merge.csv job/eval-c/summary.json)" = "$other" ] || fail "another customer's were"
cp kept.jsonl a.jsonl
run 2 run job.yaml --only user-a,merge-a,eval-a --resume never
expect "all of a customer at once" done done done done done done done done

note "files by the side, another model, a stage taken away"
head -n 2 a.jsonl >task.jsonl
expect "other questions" done done done done stale done done stale
head -n 3 a.jsonl >task.jsonl
mv job/user-c away
expect "a stage taken away" done done done done done open stale stale
mv away job/user-c
sed -i 's|"lora_alpha": [0-9.]*|"lora_alpha": 1|' job/reinforce/adapter/adapter_config.json
expect "another scaling of an adapter" done done done stale stale stale stale stale
sed -i 's|"lora_alpha": 1|"lora_alpha": 64|' job/reinforce/adapter/adapter_config.json
sed -i 's/stage: sft, data: \[refusals.jsonl, b.jsonl\]/stage: sft, data: [b.jsonl, refusals.jsonl]/' job.yaml
expect "files in another order" done done done done done stale stale stale
rm model/tokenizer.json
expect "a model that cannot be read" stale stale stale stale stale stale stale stale

note "an input that is missing is found before the first stage"
sed 's/b\.jsonl, /custmer.jsonl, /' job.yaml >wrong.yaml
line=$(grep -n custmer wrong.yaml | cut -d: -f1)
for ranks in 0 2; do
  expect_fail 66 "wrong.yaml:$line: user-c: data: custmer.jsonl: No such file or directory" $ranks run wrong.yaml --output fresh
  [ ! -e fresh ] || fail "a job without its input left a folder"
done
expect_fail 66 "user-c: data: custmer.jsonl" 0 run wrong.yaml --output fresh --show stages
[ "$(wc -l <out)" -eq 9 ] || fail "the list is not there beside a missing input"
expect_fail 66 "buffer: --model: nowhere: No such file" 0 run job.yaml --output fresh --model nowhere --show stages
note "done"
