#!/usr/bin/env bash
# Interrupted in every way that Slurm knows, and gone on with on other numbers of nodes and ranks: the adapter has the bytes of a quiet run.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

steps=${BW_STEPS:-1600}
rows 40 >rows.jsonl
cat >long.yaml <<END
model: $BW_TEST_DATA/golden/tiny/model
output: interrupted
template: plain
micro-batches: 4
checkpoint-steps: 200
stages:
  - {name: user, command: train, stage: sft, data: rows.jsonl, steps: $steps, lr: 1e-3, lora-r: 5, lora-alpha: 10, lora-dropout: 0.1}
END
newest() { ls "$1"/user/checkpoints | sed -n 's/^step-0*\([0-9]*\)\.h5$/\1/p' | sort -n | tail -n 1; }
log() { cat user-"$1".out; }
ranks_in() { # JOB: process ids of its ranks
  local process
  for process in /proc/[0-9]*; do
    [ ! "$process/exe" -ef "$BW_PROGRAM" ] || ! grep -qz '^SLURM_PROCID=\|^OMPI_COMM_WORLD_RANK=' "$process/environ" 2>/dev/null ||
      ! grep -qzx "SLURM_CONF=$SLURM_CONF" "$process/environ" 2>/dev/null || ! grep -qzx "SLURM_JOB_ID=$1" "$process/environ" 2>/dev/null ||
      echo "${process#/proc/}"
  done
}
# goes_on FROM: until the job says that it does.
goes_on() {
  local deadline=$((SECONDS + patience))
  until log "$job_id" 2>/dev/null | grep -q "resuming after step $1 of $steps"; do
    [ $SECONDS -lt $deadline ] && [ "$(state "$job_id")" != COMPLETED ] || fail "it did not go on after step $1: $(log "$job_id")"
    hurry "$job_id"
    sleep 0.2
  done
}
stopped_at() { log "$1" | sed -n 's/^stopped after step \([0-9]*\) of .*/\1/p' | tail -n 1; }

site srun
start_cluster

note "the end of the allocation, which only squeue knows, seconds away when the ranks start"
cat >late.sbatch <<END
#!/bin/bash
#SBATCH --job-name=user --output=user-%j.out --open-mode=append --requeue
ends=\$(date --date="\$(squeue --noheader --jobs=\$SLURM_JOB_ID --format=%e)" +%s)
if [ "\${SLURM_RESTART_COUNT:-0}" -eq 0 ]; then while [ \$(date +%s) -lt \$((ends - 8)) ]; do sleep 0.2; done; fi
. "$jobs/batch.sh"
run_stages customers train
END
late=$(sbatch --parsable --time=1 --ntasks=1 --cpus-per-task=1 late.sbatch long.yaml --output late)

note "a signal while modules are loaded: nothing is lost, and the job goes back into the queue"
cp "$BREAKWATER_SITE" slow.conf
echo 'modules=slow; module() { touch "loading-$SLURM_JOB_ID"; [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ] || sleep 6; }' >>slow.conf
for signal in USR1 TERM; do
  job_id=$(BREAKWATER_SITE=$work/slow.conf sbatch --parsable --ntasks=1 --time=10 "$jobs/user.sbatch" long.yaml --output "early $signal" --steps 3)
  for _ in $(seq 300); do [ ! -e "loading-$job_id" ] || break; sleep 0.1; done
  scancel --batch --signal=$signal "$job_id"
  await_restart "$job_id" 1
  await_state "$job_id" COMPLETED
  log "$job_id" | grep -q "SIG$signal came before the ranks were started" && ! log "$job_id" | grep -q ': start 0 ' ||
    fail "an early SIG$signal is not heard: $(log "$job_id")"
done

note "scontrol requeue, on two nodes"
job_id=$(sbatch --parsable --nodes=2 --ntasks-per-node=1 --time=10 "$jobs/user.sbatch" long.yaml)
await_step interrupted/user 50 "$job_id"
scontrol requeue "$job_id"
await_restart "$job_id" 1

note "scancel --signal: a checkpoint, exit code 75, and back into the queue by itself"
await_step interrupted/user 250 "$job_id"
scancel --batch --signal=USR1 "$job_id"
await_restart "$job_id" 2
at=$(stopped_at "$job_id")
[ "$at" -ge 250 ] && [ $((at % 200)) -ne 0 ] || fail "no checkpoint where the signal came, but after step $at"
log "$job_id" | grep -q "exit code 75" || fail "the program did not say 75: $(log "$job_id")"
goes_on "$at"

note "one rank killed by SIGKILL: the job ends within 30 s, and goes on when it is requeued"
await_step interrupted/user $((at + 210)) "$job_id"
began=$SECONDS
kill -9 "$(ranks_in "$job_id" | tail -n 1)"
await_state "$job_id" "$over"
[ "$(state "$job_id")" = FAILED ] && [ "$(field "$job_id" ExitCode)" != 0:0 ] || fail "a killed rank leaves the job $(state "$job_id")"
[ $((SECONDS - began)) -le 30 ] || fail "the job ended $((SECONDS - began)) s after its rank was killed"
at=$(newest interrupted)
scontrol requeue "$job_id"
goes_on "$at"

note "a second SIGTERM: ranks that come to no checkpoint leave at once"
await_step interrupted/user $((at + 210)) "$job_id"
kill -STOP $(ranks_in "$job_id")
scancel --batch --signal=TERM "$job_id"
sleep 3
[ "$(state "$job_id")" = RUNNING ] || fail "the first SIGTERM ended ranks that had not stopped: $(log "$job_id")"
began=$SECONDS
scancel --batch --signal=TERM "$job_id"
await_state "$job_id" "$over"
[ $((SECONDS - began)) -le 30 ] && log "$job_id" | grep -q "a second SIGTERM: the ranks leave at once" || fail "the job ended $((SECONDS - began)) s after the second SIGTERM"
at=$(newest interrupted)
scontrol requeue "$job_id"
goes_on "$at"

note "a node that fails"
await_step interrupted/user $((at + 30)) "$job_id"
started=$(field "$job_id" Restarts)
scontrol update NodeName=n2 State=DOWN Reason=test
for _ in $(seq 100); do [ "$(field "$job_id" Restarts)" -eq "$started" ] || break; sleep 0.2; done
for _ in $(seq 100); do grep -qsa "^slurmstepd: \[$job_id[.]" /proc/[0-9]*/cmdline || break; sleep 0.2; done # a real node would not come back with the old step still on it
scontrol update NodeName=n2 State=RESUME 2>/dev/null || true # or it has come back by itself
await_restart "$job_id" $((started + 1))

note "scancel: a checkpoint, and it stays cancelled"
at=$(newest interrupted)
await_step interrupted/user $((at + 30)) "$job_id"
scancel "$job_id"
await_state "$job_id" "$over"
sleep 3
[ "$(state "$job_id")" = CANCELLED ] || fail "a cancelled job is $(state "$job_id")"
at=$(newest interrupted)

note "resubmitted with mpirun, on one node with three ranks; preempted by an urgent job on both"
site mpirun
job_id=$(sbatch --parsable --nodes=1 --ntasks-per-node=3 --time=10 "$jobs/user.sbatch" long.yaml --grid 3x1)
goes_on "$at"
await_step interrupted/user $((at + 30)) "$job_id"
sbatch --partition=urgent --nodes=2 --exclusive --output=/dev/null --wrap true >/dev/null
await_restart "$job_id" 1
at=$(stopped_at "$job_id")
[ "$at" -gt 0 ] || fail "no checkpoint at the preemption: $(log "$job_id")"
goes_on "$at"
await_state "$job_id" COMPLETED

note "the end of the allocation came: stopped before it, back into the queue"
for _ in $(seq 300); do [ -z "$(stopped_at "$late")" ] || break; sleep 0.2; done
log "$late" | grep -q "exit code 75" && log "$late" | grep -q "back into the queue" || fail "it did not stop by itself: $(log "$late")"
! log "$late" | grep -q "SIG" || fail "it was a signal that stopped it: $(log "$late")"
[ "$(newest late)" -gt 0 ] || fail "no checkpoint before the end"
await_state "$late" COMPLETED

begin 1 run long.yaml --output quiet
end
[ "$status" -eq 0 ] || fail "exit code $status of the quiet run"
same_adapter quiet/user interrupted/user "interrupted in every way"
same_adapter quiet/user late/user "stopped by the end of its allocation"
[ "$(sed -n 's/^{"step": \([0-9]*\),.*}$/\1/p' interrupted/user/metrics.jsonl)" = "$(seq "$steps")" ] || fail "metrics.jsonl does not have each step once"
note "done"
