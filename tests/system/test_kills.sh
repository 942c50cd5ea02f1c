#!/usr/bin/env bash
# Killed at random moments, and the newest checkpoint now and then cut, changed by a bit, or left under its temporary name: a finished checkpoint is
# never lost, and the adapter has the bytes of a quiet run. BW_KILLS says how often (tests/kill_campaign.sh), BW_SEED repeats the moments.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

kills=${BW_KILLS:-8}
steps=80
rows 40 >rows.jsonl
train=(train --stage sft --model "$BW_TEST_DATA/golden/tiny/model" --template plain --data rows.jsonl --micro-batches 4 --lr 1e-3
  --lora-r 5 --lora-alpha 10 --lora-dropout 0.1 --checkpoint-minutes 0 --steps $steps --checkpoint-steps 1 --keep 2)
RANDOM=${BW_SEED:-$$}
note "$kills kills (moments from BW_SEED=${BW_SEED:-$$})"

run 2 "${train[@]}" --output quiet
folder=killed-1 folders=1 # a new one whenever a run comes to its end
good=0                    # step of the newest checkpoint that is whole
bad=''                    # the file that was damaged, as long as it is, and its checksum
whole=''                  # the kill came after the adapter was there, and before the ranks had left
damages=0 writing=0

forget_repaired() { [ -z "$bad" ] || sha256sum --check --status <<<"$bad" 2>/dev/null || bad=''; }

# Where the newest whole checkpoint is now; it may not be older than it was.
look() {
  local step now=0
  forget_repaired
  for step in $(checkpoints $folder); do
    [[ $bad == *"$(checkpoint_file $folder "$step")" ]] || now=$step
  done
  [ "$now" -ge "$good" ] || fail "the last finished checkpoint, of step $good, is lost: $(ls $folder/checkpoints)"
  good=$now
  ! ls $folder/checkpoints/*.tmp* >/dev/null 2>&1 || writing=$((writing + 1))
}

# Only where the one before is whole: nobody can go on from nothing.
damage() {
  local file before
  [ "$(checkpoints $folder | wc -l)" -eq 2 ] && [ -z "$bad" ] || return 0
  file=$(checkpoint_file $folder "$good")
  before=$(checkpoints $folder | head -n 1)
  case $((RANDOM % 3)) in
    0) cut_in_half "$file" ;;
    1) flip_bit "$file" ;;
    2) mv "$file" "$file.tmp" ;;
  esac
  [ ! -e "$file" ] || bad=$(sha256sum "$file")
  good=$before
  damages=$((damages + 1))
}

for ((kill = 1; kill <= kills; kill++)); do
  ranks=$((RANDOM % 4 + 1))
  begin $ranks "${train[@]}" --output $folder --weights "$([ $((RANDOM % 2)) -eq 0 ] && echo stream || echo resident)"
  ready=$((SECONDS + patience)) # a machine under load takes its time to start
  until grep -q "^stage sft" out || [ $SECONDS -ge $ready ] || ! kill -0 "$job" 2>/dev/null; do sleep 0.02; done
  sleep "0.$((RANDOM % 9))$((RANDOM % 10))"
  kill -9 $(ranks_of "$job") 2>/dev/null || true
  end
  if [ -n "$whole" ]; then
    grep -q "^stage sft is done" out || fail "kill $kill: the adapter was there, and the run did not say so"
  elif [ "$good" -ne 0 ]; then
    grep -q "resuming after step $good of $steps" out || fail "kill $kill: it did not go on after step $good"
  fi
  if [ "$status" -eq 0 ]; then
    ends_like quiet $folder $steps "kill $kill came too late"
    rm -r $folder
    folders=$((folders + 1))
    folder=killed-$folders good=0 bad='' whole=''
    continue
  fi
  look
  [ ! -e $folder/adapter ] || whole=yes
  [ $((RANDOM % 3)) -ne 0 ] || [ -n "$whole" ] || damage
done
run 3 "${train[@]}" --output $folder
ends_like quiet $folder $steps "killed again and again"
note "done ($kills kills in $folders runs, $writing left a checkpoint half written, $damages checkpoints damaged)"
