#!/usr/bin/env bash
# The disk fails on one rank while a checkpoint is written or read, inside MPI-IO, where the others wait for that rank: the job ends soon, with one
# line and the right exit code, the checkpoints before stay whole, and the run goes on with the same bits.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
[[ ${BW_SANITIZE:-} != *address* ]] || { echo "SKIPPED: the address sanitizer wants to be loaded first" && exit 77; }

rows 24 >rows.jsonl
train=(train --stage sft --model "$BW_TEST_DATA/golden/tiny/model" --template plain --data rows.jsonl --micro-batches 3 --lr 1e-3 --lora-r 8
  --checkpoint-steps 2 --checkpoint-minutes 0 --keep 3)
six=("${train[@]}" --steps 6)
run 1 "${six[@]}" --output whole

# with_fault FILE CALL RANK AFTER command...: of this shell.
with_fault() {
  export LD_PRELOAD=$BW_FAULT FAULT_FILE=/checkpoints/$1 FAULT_CALL=$2 FAULT_RANK=$3 FAULT_AFTER=$4
  "${@:5}"
  unset LD_PRELOAD FAULT_FILE FAULT_CALL FAULT_RANK FAULT_AFTER
}

# Which rank writes what is MPI's choice: with two all write data and tables, with three the first alone. The run goes on after step 2: a file of
# that step is tried before the first step of all, and the checkpoint is that of step 4.
for case in "2 0 write 0 2" "2 0 write 0 4" "2 1 write 20 4" "2 1 sync 0 4" "3 0 write 0 4" "3 2 sync 0 4"; do
  read -r ranks failing call after step <<<"$case"
  note "$ranks ranks, $call fails on rank $failing after $after, in a file of step $step"
  rm -rf broken
  run "$ranks" "${six[@]}" --output broken
  rm -rf broken/adapter broken/checkpoints/step-00000[46].h5
  before=$(sha256sum "$(checkpoint_file broken 2)")
  with_fault "step-00000$step" "$call" "$failing" "$after" expect_fail 74 "broken/checkpoints/step-00000$step.h5.tmp: " "$ranks" "${six[@]}" --output broken
  [ "$(checkpoints broken)" = 2 ] && [ "$(sha256sum "$(checkpoint_file broken 2)")" = "$before" ] || fail "the checkpoint of step 2 is not as it was"
  run $((ranks % 3 + 1)) "${six[@]}" --output broken
  grep -q "resuming after step 2 of 6" out || fail "it did not go on after step 2"
  ends_like whole broken 6 "a disk that failed"
done

note "a checkpoint that one rank cannot read"
rm -r broken/adapter
with_fault step- read 1 9 expect_fail 65 "none of the 3 checkpoints can be read" 2 "${six[@]}" --output broken
run 2 "${six[@]}" --output broken
ends_like whole broken 6 "a disk that could not be read"

note "killed in the moment in which the room that is set aside has a name"
rm -r broken/adapter broken/checkpoints/step-00000[46].h5
begin_killed() {
  begin 1 "${six[@]}" --output broken
  end
}
with_fault step-000004.h5.tmp.room unlink 0 0 begin_killed
[ "$status" -ne 0 ] && [ -e broken/checkpoints/step-000004.h5.tmp.room ] || fail "not killed there (exit code $status): $(ls broken/checkpoints)"
run 2 "${six[@]}" --output broken
ends_like whole broken 6 "a room that a killed job left"

note "a semaphore that a killed job left locked"
if [ -w /dev/shm ]; then
  semaphore=/dev/shm/sem.OMPIO_step-000006.h5
  [ -e "$semaphore" ] || head -c 32 /dev/zero >"$semaphore" # of the C library's size, with the value 0
  rm -r broken/adapter
  run 2 "${six[@]}" --output broken
  same_adapter whole broken "a locked semaphore"
fi
note "done"
