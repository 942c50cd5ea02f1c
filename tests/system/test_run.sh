#!/usr/bin/env bash
# How a run behaves: a second job is kept out, a stop is heard everywhere and gone on with, nothing of anybody else's is deleted, a failure on one
# node is named.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

rows 24 >rows.jsonl
model=$BW_TEST_DATA/golden/tiny/model
train=(train --stage sft --model "$model" --template plain --data rows.jsonl --micro-batches 2 --lr 1e-3 --lora-r 3 --lora-alpha 6
  --checkpoint-minutes 0)
run 1 "${train[@]}" --steps 4 --output tuned
merge=(merge --model "$model" --user tuned/adapter --method user --scale 1 --dense f32)
eval=(eval --model "$model" --adapter tuned/adapter --task rows.jsonl --template plain --max-new 4 --eval-batch 2 --perplexity)
cat >job.yaml <<END
model: $model
template: plain
stages:
  - {name: tuned, command: train, stage: sft, data: rows.jsonl, steps: 4, micro-batches: 2, lora-r: 3, lora-alpha: 6}
  - {name: merged, command: merge, method: user, user: "@tuned/adapter", scale: 1}
  - {name: eval, command: eval, adapter: "@merged/adapter", task: rows.jsonl, max-new: 4, eval-batch: 2}
END

note "two jobs on one folder"
begin 2 "${train[@]}" --steps 1000000 --checkpoint-steps 0 --output busy
wait_for_step busy 3
first=$job
for command in train merge eval; do
  case $command in
    train) second=("${train[@]}" --steps 1000000) ;;
    merge) second=("${merge[@]}") ;;
    eval) second=("${eval[@]}") ;;
  esac
  expect_fail 73 "busy: another job .*process [0-9]+ on .*since 20[0-9-]+ .*another --output" 1 "${second[@]}" --output busy
done
expect_fail 73 "busy: another job" 1 run job.yaml --output busy
kill -9 $(ranks_of "$first")
job=$first
end
note "killed: the lock is gone with its process, and so is what it left unfinished"
mkdir -p busy/checkpoints
rm busy/metrics.jsonl # to see the steps of the next job
touch busy/checkpoints/step-000123.h5.tmp busy/checkpoints/step-mine.h5 busy/report.txt.tmp
begin 2 "${train[@]}" --steps 1000000 --checkpoint-steps 0 --output busy
wait_for_step busy 3
[ ! -e busy/checkpoints/step-000123.h5.tmp ] && [ ! -e busy/report.txt.tmp ] || fail "what a killed job left unfinished stays"
kill -TERM "$(ranks_of "$job" | tail -n 1)"
end
[ "$status" -eq 75 ] || fail "exit code $status after SIGTERM"
run 1 "${train[@]}" --steps 4 --output tuned --resume never
expect_fail 73 "busy belongs to another run: .*or --resume never to start over" 1 "${train[@]}" --steps 5 --output busy
run 1 "${train[@]}" --steps 5 --output busy --resume never
grep -q "^steps: 5" busy/config.yaml && each_step_once busy 5 || fail "--resume never does not start over with other settings"
[ -e busy/checkpoints/step-mine.h5 ] || fail "a file of somebody else's was deleted"

note "no time left: eval and merge stop between two rounds, and go on"
run 2 "${eval[@]}" --output eval-whole
run 2 "${merge[@]}" --output merge-whole
SLURM_JOB_END_TIME=$(($(date +%s) - 1))
export SLURM_JOB_END_TIME
begin 2 "${eval[@]}" --output eval-stopped
end
[ "$status" -eq 75 ] || fail "exit code $status of eval when the job's time is over"
grep -q "eval, answers: stopped after 4 of 24 (the end of the Slurm job); run the same command again" out || fail "eval does not say where it stopped"
[ ! -e eval-stopped/summary.json ] && [ ! -e eval-stopped/answers.jsonl ] || fail "a stopped eval left half a result"
begin 2 "${merge[@]}" --output merge-stopped
end
[ "$status" -eq 75 ] || fail "exit code $status of merge when the job's time is over"
[ "$(ls merge-stopped)" = config.yaml ] || fail "a stopped merge left half a result: $(ls merge-stopped)"
begin 2 run job.yaml --output whole-stopped
end
[ "$status" -eq 75 ] || fail "exit code $status of run when the job's time is over"
unset SLURM_JOB_END_TIME
run 1 "${eval[@]}" --output eval-stopped
cmp eval-stopped/answers.jsonl eval-whole/answers.jsonl || fail "a stopped eval ends with other answers"
run 3 "${merge[@]}" --output merge-stopped
cmp merge-stopped/model/model.safetensors merge-whole/model/model.safetensors || fail "a stopped merge ends with another model"

note "a pipeline stops between its stages"
run 2 run job.yaml --output whole-stopped
rm -r whole-stopped/eval
SLURM_JOB_END_TIME=$(($(date +%s) - 1)) begin 2 run job.yaml --output whole-stopped
end
[ "$status" -eq 75 ] || fail "exit code $status of run before its last stage"
grep -q "stopped before stage eval (the end of the Slurm job); run the same command again" out || fail "run does not say where it stopped"
[ ! -e whole-stopped/eval ] || fail "a stage was begun without time for it"
run 2 run job.yaml --output whole-stopped
begin 2 run job.yaml --output whole-stopped --time-limit 0.00001
end
[ "$status" -eq 0 ] || fail "a finished pipeline is a stopped one"

note "the end of a job that is long over is somebody else's"
rm -r whole-stopped/eval
SLURM_JOB_END_TIME=1000 begin 2 run job.yaml --output whole-stopped
end
[ "$status" -eq 0 ] || fail "exit code $status of run with the end of another job"
[ "$(grep -c "warning: SLURM_JOB_END_TIME is '1000'" err)" -eq 1 ] || fail "nobody says that the end of another job is ignored"

note "jobs of one stage each keep their time side by side"
for stage in tuned eval; do # neither reads what the other writes
  begin 1 run job.yaml --output whole-stopped --only "$stage" --resume never
  jobs_at_work+=("$job")
done
for job in "${jobs_at_work[@]}"; do
  end
  [ "$status" -eq 0 ] || fail "exit code $status of a job beside another"
done
for stage in tuned merged eval; do
  grep -Eqx '[0-9]+\.[0-9]{3}' whole-stopped/$stage/seconds.txt || fail "no time of stage $stage"
done
run 0 run job.yaml --output whole-stopped --show report
for stage in tuned merged eval; do
  grep -qx "$stage,$(cat whole-stopped/$stage/seconds.txt)" whole-stopped/times.csv || fail "times.csv has not the time of stage $stage"
done
before=$(cat whole-stopped/tuned/seconds.txt)
run 1 run job.yaml --output whole-stopped
[ "$(cat whole-stopped/tuned/seconds.txt)" = "$before" ] || fail "to look at a finished stage was counted as work"

note "a command that never looks for a stop is ended by the first SIGTERM"
mkfifo full
exec 7<>full
dd if=/dev/zero of=full bs=4096 count=64 oflag=nonblock status=none 2>/dev/null || true # a pipe that takes nothing more
"$BW_PROGRAM" inspect "$model" >full 2>err &
job=$!
sleep 1
kill -TERM "$job"
patience=20 end
[ "$status" -eq 143 ] || fail "exit code $status of inspect after SIGTERM"
exec 7>&-

note "a signal to one rank of an eval"
rows 4000 >many.jsonl
long=(eval --model "$model" --task many.jsonl --template plain --max-new 20 --eval-batch 1)
begin 2 "${long[@]}" --output eval-long
until grep -q "eval: weights" out || ! kill -0 "$job" 2>/dev/null; do sleep 0.05; done
kill -USR1 "$(ranks_of "$job" | tail -n 1)"
end
[ "$status" -eq 75 ] || fail "exit code $status of eval after SIGUSR1 to one rank"
grep -Eq 'stopped after [0-9]+ of 4000 \(a signal\); run the same command again' out || fail "eval does not say that it was a signal"

note "eval and merge delete nothing but their own"
mkdir theirs
echo "by hand" >theirs/answers.jsonl
expect_fail 73 "theirs/answers.jsonl: was not made" 2 "${eval[@]}" --output theirs --resume never
grep -q "by hand" theirs/answers.jsonl || fail "answers of somebody else's are gone"
expect_fail 73 "other settings.*or --resume never to start over" 2 "${eval[@]}" --output eval-whole --limit 3
[ -s eval-whole/summary.json ] || fail "results of other settings are gone"
for command in eval train; do
  declare -n words=$command
  expect_fail 73 "merge-whole: this folder holds results of another command" 2 "${words[@]}" --output merge-whole --resume never
  [ -s merge-whole/model/model.safetensors ] && grep -q '^method: user' merge-whole/config.yaml || fail "a merge was touched by $command"
done
expect_fail 73 "tuned: this folder holds results of another command" 2 "${merge[@]}" --output tuned --resume never
run 2 "${eval[@]}" --output eval-whole --limit 3 --resume never
[ "$(wc -l <eval-whole/answers.jsonl)" -eq 3 ] || fail "--resume never does not start an eval over with other settings"
run 2 "${merge[@]}" --output merge-whole --tau 1e-5 --resume never
grep -q '^tau: 1e-05' merge-whole/config.yaml || fail "--resume never does not start a merge over with other settings"
echo "remember" >eval-whole/notes.txt
run 2 "${eval[@]}" --output eval-whole --resume never
grep -q "remember" eval-whole/notes.txt || fail "a note beside the answers is gone"

note "a BufferLoRA is no adapter to start from"
run 1 train --stage buffer --model "$model" --template plain --data rows.jsonl --micro-batches 2 --steps 2 --lora-r 3 --lora-alpha 6 --output buffer
expect_fail 64 "--init-adapter buffer/adapter: this is a BufferLoRA.*--allow-buffer" 2 "${train[@]}" --steps 2 --init-adapter buffer/adapter --output from-buffer
[ ! -e from-buffer ] || fail "a refused command left a folder"
run 1 "${train[@]}" --steps 2 --init-adapter buffer/adapter --allow-buffer --output from-buffer

note "a buffer that is none on one node only"
user=("${train[@]/sft/user}" --steps 2 --output apart)
"$BW_MPIEXEC" --oversubscribe --allow-run-as-root -n 1 "$BW_PROGRAM" "${user[@]}" --buffer buffer/adapter : \
  -n 1 "$BW_PROGRAM" "${user[@]}" --buffer tuned/adapter </dev/null >out 2>err &
job=$!
end
[ "$status" -eq 65 ] || fail "exit code $status when one rank's buffer is none"
[ "$(grep -c "^breakwater: error: tuned/adapter is a LoRA of role 'sft', not a BufferLoRA" err)" -eq 1 ] || fail "the folder is not named once"

note "a pipeline that one rank cannot read"
status=0
"$BW_MPIEXEC" --oversubscribe --allow-run-as-root -n 1 "$BW_PROGRAM" run job.yaml --output apart : -n 1 "$BW_PROGRAM" run elsewhere.yaml --output apart \
  </dev/null >out 2>err || status=$?
[ "$status" -eq 66 ] || fail "exit code $status when one rank lacks the pipeline"
[ "$(grep -c '^breakwater: error: ' err)" -eq 1 ] || fail "not exactly one line of error"
grep -q "error: rank 1 of 2, on .*elsewhere.yaml" err || fail "the rank that lacks the file is not named"
note "where the ranks run is said, and that a launcher binds a rank to fewer cores than it has threads"
OMPI_MCA_hwloc_base_binding_policy=core run 1 "${train[@]}" --steps 1 --threads 2 --output bound
grep -Eq "^host [^ ]+: 1 rank x 2 threads, on core [0-9]+$" out || fail "nobody says where the rank runs"
grep -Eq "^breakwater: warning: on [^ ]+ a rank has 2 threads on core [0-9]+, of [0-9]+, which is many times slower: .*--bind-to none.*--cpus-per-task" err ||
  fail "nobody warns of two threads on one core"
run 2 "${train[@]}" --steps 1 --threads 1 --output unbound
grep -Eq "^host [^ ]+: 2 ranks x 1 thread, each on cores? [0-9,-]+$" out || fail "nobody says where two ranks run"
note "done"
