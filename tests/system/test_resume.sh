#!/usr/bin/env bash
# Stopped, damaged, and gone on with elsewhere: the adapter has the bytes of a run that nothing happened to.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

rows 40 >rows.jsonl
train=(train --stage sft --model "$BW_TEST_DATA/golden/tiny/model" --template plain --data rows.jsonl --micro-batches 4 --lr 1e-3
  --lora-r 5 --lora-alpha 10 --lora-dropout 0.1 --checkpoint-minutes 0)

note "stopped by signals, gone on with on other numbers of ranks"
long=("${train[@]}" --steps 200 --checkpoint-steps 70)
run 1 "${long[@]}" --output whole
each_step_once whole 200
for line in "command: breakwater train --stage sft" "options that are not at their defaults: " "host [^ ]*: 1 rank x 1 thread" \
  "  checkpoints in whole/checkpoints; MPI-IO hints taken: [a-z_]" "parallel efficiency: [0-9.]*% = load balance [0-9.]*% x communication [0-9.]*%"; do
  grep -q "^$line" out || fail "no line: $line"
done

run 1 "${long[@]}" --output threads --threads 2 --weights stream
ends_like whole threads 200 "two threads"

begin 3 "${long[@]}" --output stopped
wait_for_step stopped 30
kill -USR1 "$job" # mpiexec hands it on
end
[ "$status" -eq 75 ] || fail "exit code $status after SIGUSR1"
at=$(newest stopped)
[ "$at" -ge 30 ] && [ "$at" -lt 200 ] || fail "no checkpoint where SIGUSR1 came"
[ "$(steps_in stopped | tail -n 1)" = "$at" ] || fail "the checkpoint is not of the last step"
grep -q "run the same command again" out || fail "nobody says how to go on"

begin 2 "${long[@]}" --output stopped --grid 2x1
wait_for_step stopped $((at + 50))
kill -TERM "$(ranks_of "$job" | tail -n 1)" # one rank hears it, all have to stop
end
[ "$status" -eq 75 ] || fail "exit code $status after SIGTERM to one rank"
grep -q "resuming after step $at of 200" out || fail "it did not go on after step $at"

run 4 "${long[@]}" --output stopped --grid 2x2 --weights stream
ends_like whole stopped 200 "stopped twice"

note "a Ctrl-C, where no mpirun takes it for itself"
begin 0 "${long[@]}" --output by-hand
wait_for_step by-hand 30
kill -INT "$job"
end
[ "$status" -eq 75 ] || fail "exit code $status after SIGINT"
run 2 "${long[@]}" --output by-hand
ends_like whole by-hand 200 "stopped by Ctrl-C"

note "a second SIGTERM, more than a second after the first, ends a rank that comes to no checkpoint"
begin 2 "${long[@]}" --output twice
wait_for_step twice 71
ranks=($(ranks_of "$job"))
kill -STOP "${ranks[1]}" # the other waits for it
kill -TERM "${ranks[0]}"
sleep 2.1
kill -0 "${ranks[0]}" 2>/dev/null || fail "the first SIGTERM ended a rank that had not stopped"
began=$SECONDS
kill -TERM "${ranks[0]}"
end
[ "$status" -eq 143 ] && [ $((SECONDS - began)) -lt 20 ] || fail "exit code $status, $((SECONDS - began)) s after the second SIGTERM"
at=$(newest twice)
run 2 "${long[@]}" --output twice
grep -q "resuming after step $at of 200" out || fail "the last checkpoint does not count after a second SIGTERM"
ends_like whole twice 200 "ended by a second SIGTERM"

note "the wall clock"
started=$SECONDS
begin 2 "${train[@]}" --steps 1000000 --checkpoint-steps 0 --time-limit 0.03 --output clock
end
[ "$status" -eq 75 ] || fail "exit code $status at the time limit"
[ $((SECONDS - started)) -lt 30 ] || fail "the time limit of 1.8 s took $((SECONDS - started)) s"
[ "$(newest clock)" = "$(steps_in clock | tail -n 1)" ] || fail "no checkpoint of the last step at the time limit"
grep -Eq '^stopped after step [0-9]+ of 1000000 \(--time-limit\); checkpoint in' out || fail "nobody says that it was the time limit"
begin 2 "${train[@]}" --steps 1000000 --checkpoint-steps 0 --time-limit 0.2 --output first-checkpoint
end
[ "$(newest first-checkpoint)" = 1 ] || fail "12 s were used up although nobody knew how long a checkpoint takes"
SLURM_JOB_END_TIME=$(($(date +%s) + 2))
export SLURM_JOB_END_TIME
begin 1 "${train[@]}" --steps 1000000 --checkpoint-steps 0 --output slurm-clock
end
unset SLURM_JOB_END_TIME
[ "$status" -eq 75 ] || fail "exit code $status at the end of the Slurm job"

note "checkpoints that are damaged"
few=150
begin 1 "${train[@]}" --steps "$few" --checkpoint-steps 20 --keep 4 --output source
wait_for_step source 70
kill -USR1 "$(ranks_of "$job")"
end
[ "$status" -eq 75 ] || fail "exit code $status after SIGUSR1"
run 1 "${train[@]}" --steps "$few" --output undamaged
last=$(newest source)
previous=$(checkpoints source | tail -n 2 | head -n 1)
goes_on() { # FOLDER PATTERN RANKS: warned, and gone on from the one before
  run "$3" "${train[@]}" --steps "$few" --checkpoint-steps 0 --output "$1"
  grep -Eq "^breakwater: warning: .*$(checkpoint_file "$1" "$last").*$2" err || fail "$1: no warning that names the file"
  [ "$(warnings | wc -l)" -eq 1 ] || fail "$1: more than one warning"
  grep -q "resuming after step $previous of $few" out || fail "$1: the checkpoint before it is not used"
  ends_like undamaged "$1" "$few" "$1"
}
cp -r source truncated
cut_in_half "$(checkpoint_file truncated "$last")"
goes_on truncated "" 2
cp -r source empty
: >"$(checkpoint_file empty "$last")"
goes_on empty "" 1
cp -r source flipped
flip_bit "$(checkpoint_file flipped "$last")"
goes_on flipped "checksum|damaged" 3
cp -r source hopeless
for each in hopeless/checkpoints/*.h5; do truncate -s 1000 "$each"; done
expect_fail 65 "none of the [0-9]+ checkpoints" 2 "${train[@]}" --steps "$few" --output hopeless
[ ! -e hopeless/adapter ] || fail "an adapter from no checkpoint"

cp -r source misnamed # not what this program calls its files: neither looked at nor deleted
cp "$(checkpoint_file source "$last")" misnamed/checkpoints/step-7.h5
cp "$(checkpoint_file source "$last")" misnamed/checkpoints/step--00007.h5
: >misnamed/checkpoints/step-8.h5.tmp
run 2 "${train[@]}" --steps "$few" --output misnamed
[ -z "$(warnings)" ] && grep -q "resuming after step $last of $few" out || fail "files of other names are taken for checkpoints: $(cat err)"
for name in step-7.h5 step--00007.h5 step-8.h5.tmp; do [ -e "misnamed/checkpoints/$name" ] || fail "$name was deleted"; done

note "a named checkpoint, and one that is not there"
cp -r source named
mkdir elsewhere && mv named/checkpoints/* elsewhere
run 2 "${train[@]}" --steps "$few" --output named --resume "elsewhere/$(basename "$(checkpoint_file source "$previous")")"
ends_like undamaged named "$few" "--resume PATH"
expect_fail 66 "no checkpoint|no such" 1 "${train[@]}" --steps "$few" --output nowhere --resume elsewhere/step-999999.h5

note "what is done stays as it is"
find stopped -type f ! -name .lock -exec sha256sum {} + | sort >before
find stopped -type f ! -name .lock -printf '%p %T@\n' | sort >>before
run 3 "${long[@]}" --output stopped
grep -q "is done" out || fail "nobody says that the stage is done"
find stopped -type f ! -name .lock -exec sha256sum {} + | sort >after
find stopped -type f ! -name .lock -printf '%p %T@\n' | sort >>after
cmp -s before after || fail "a finished stage was changed by running it again"

note "a person can read a checkpoint"
h5dump -H "$(checkpoint_file source "$last")" >dump
for group in lora adam 000 002 down; do grep -q "GROUP \"$group\"" dump || fail "no group $group in a checkpoint"; done
h5dump -H -d /lora/000/down/A "$(checkpoint_file source "$last")" | grep -q 'SIMPLE { ( 5, 72 )' || fail "A of down is not 5 x 72"
h5dump -H -d /lora/000/down/B "$(checkpoint_file source "$last")" | grep -q 'SIMPLE { ( 40, 5 )' || fail "B of down is not 40 x 5"
h5dump -d /lora/000/q/A "$(checkpoint_file source "$last")" | grep -Eq '^ *\(0,0\): -?[0-9.e-]+, ' || fail "h5dump shows no numbers"
for name in format step micro_batches model data config settings; do
  h5dump -a "/$name" "$(checkpoint_file source "$last")" >/dev/null || fail "no attribute $name in a checkpoint"
done
h5dump -a /step "$(checkpoint_file source "$last")" | grep -q "(0): $last" || fail "the attribute step is not $last"
note "done"
