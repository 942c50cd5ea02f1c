#!/usr/bin/env bash
# A disk that fills up while a run writes its checkpoints: the ones before stay whole, nothing half-written is left, no rank waits for another, and
# the run goes on with the same bits when there is room.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

mkdir disk
mount -t tmpfs -o size=16m tmpfs disk 2>/dev/null || { echo "SKIP: no permission to mount a small disk" && exit 77; }
mounted=$work/disk

rows 24 >rows.jsonl
train=(train --stage sft --model "$BW_TEST_DATA/golden/tiny/model" --template plain --data rows.jsonl --micro-batches 3 --lr 1e-3 --lora-r 64
  --checkpoint-steps 2 --checkpoint-minutes 0 --keep 3)
six=("${train[@]}" --steps 6)
run 1 "${six[@]}" --output whole
bytes=$(stat -c %s "$(checkpoint_file whole 2)")

# leave KIB: so much is free on the disk.
leave_free() {
  rm -f disk/ballast
  head -c $(($(stat -f -c '%a * %S' disk) - $1 * 1024)) /dev/zero >disk/ballast
}

# What has to be true after the disk was full, and after the run has gone on. FOLDER
whole_checkpoints() {
  local step
  [ -z "$(find "$1" -name '*.tmp*')" ] || fail "half-written files take up the full disk: $(find "$1" -name '*.tmp*')"
  [ ! -e "$1/adapter/adapter_model.safetensors" ] || fail "an adapter although the run broke off"
  for step in $(checkpoints "$1"); do
    h5dump -d /lora/001/up/B "$(checkpoint_file "$1" "$step")" >/dev/null || fail "checkpoint $step cannot be read"
    h5dump -a /complete "$(checkpoint_file "$1" "$step")" | grep -q '(0): 1' || fail "checkpoint $step is not complete"
  done
}

for ranks in 1 2 3; do
  note "room for one checkpoint and not for two, $ranks ranks"
  rm -rf disk/*
  leave_free $((4096 + bytes * 3 / 2048)) # 4 MiB are kept for closing the file
  expect_fail 74 "disk/run/checkpoints/step-000004.h5.tmp: .*needs [0-9.]+ MiB: make room, then run the same command again" "$ranks" \
    "${six[@]}" --output disk/run
  [ "$(checkpoints disk/run)" = 2 ] || fail "the checkpoint of step 2 is not alone: $(ls disk/run/checkpoints)"
  whole_checkpoints disk/run
  before=$(sha256sum "$(checkpoint_file disk/run 2)")
  expect_fail 74 "make room" "$ranks" "${six[@]}" --output disk/run # still full: it tries, and says so again
  [ "$(sha256sum "$(checkpoint_file disk/run 2)")" = "$before" ] || fail "the checkpoint of step 2 was changed"
  rm disk/ballast
  run $((ranks % 3 + 1)) "${six[@]}" --output disk/run
  grep -q "resuming after step 2 of 6" out || fail "it did not go on after step 2"
  ends_like whole disk/run 6 "a disk that was full"
done

for ranks in 1 2; do
  note "told to continue, $ranks ranks"
  rm -rf disk/*
  leave_free $((4096 + bytes * 3 / 2048))
  begin "$ranks" "${six[@]}" --checkpoint-error continue --output disk/run
  end
  [ "$status" -eq 74 ] || fail "exit code $status where its last checkpoint finds no room"
  each_step_once disk/run 6
  [ "$(grep -c 'warning: no checkpoint of step 4, and the run goes on' err)" -eq 1 ] || fail "not one warning of step 4"
  [ "$(checkpoints disk/run)" = 2 ] || fail "the checkpoint of step 2 is not alone: $(ls disk/run/checkpoints)"
  whole_checkpoints disk/run
  rm disk/ballast
  run "$ranks" "${six[@]}" --output disk/run
  ends_like whole disk/run 6 "a disk that was full while the run went on"
done

note "no room from the start: said before the first step"
rm -rf disk/*
leave_free 2048
expect_fail 74 "disk/full/checkpoints/step-000000.h5.tmp: .*make room" 2 "${six[@]}" --output disk/full
[ ! -s disk/full/metrics.jsonl ] || fail "a step was taken"
expect_fail 74 "disk/full/checkpoints/step-000006.h5.tmp: .*make room" 2 "${six[@]}" --checkpoint-error continue --output disk/full
each_step_once disk/full 6
rm disk/ballast
run 2 "${six[@]}" --output disk/full
ends_like whole disk/full 6 "a disk that had no room for any checkpoint"

note "done"
