#!/usr/bin/env bash
# jobs/scaling.sbatch on a real cluster of two nodes: every kind of line is measured once, in CSV and table, and one that fails ends the job.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cp -r "$BW_TEST_DATA/../benchmarks" "$work/benchmarks"
export STEPS=2 KINDS="strong weak replicas checkpoint"

site srun
start_cluster
model=$BW_TEST_DATA/golden/tiny/model

note "two nodes, a rank on each"
job_id=$(sbatch --parsable --nodes=2 --ntasks-per-node=1 --time=10 "$jobs/scaling.sbatch" "the scaling" --model "$model" --lora-r 4 --max-length 256)
await_state "$job_id" "$over"
[ "$(state "$job_id")" = COMPLETED ] || fail "the job is $(state "$job_id"): $(cat scaling-"$job_id".out)"
[ "$(cut -d, -f1-5 "the scaling/scaling.csv" | tr '\n' ' ')" = "kind,ranks,threads,replicas,rows strong,1,1,0,8 strong,2,1,0,8 weak,1,1,0,2 weak,2,1,0,4 replicas,2,1,1,8 replicas,2,1,2,8 " ] ||
  fail "the lines of scaling.csv: $(cat "the scaling/scaling.csv")"
[ "$(grep -Ec '^\| (strong|weak|replicas) \| [12] x 1 \| [-12] \| [248] \| [0-9]+ \| [0-9.]+ \| [0-9]+% \| [0-9]+% \|$' "the scaling/scaling.md")" -eq 6 ] &&
  [ "$(grep -Ec '^\| (MPI-IO|write|read)[^|]* \| [0-9.]+ \| [0-9.]+ \| (-|[0-9]+%) \|$' "the scaling/scaling.md")" -eq 4 ] || fail "the tables: $(cat "the scaling/scaling.md")"

note "with mpirun; what the program refuses ends the job with its exit code"
site mpirun
job_id=$(sbatch --parsable --nodes=2 --ntasks-per-node=1 --time=10 "$jobs/scaling.sbatch" refused --model "$model" --lora-r 0)
await_state "$job_id" "$over"
[ "$(field "$job_id" ExitCode)" = 64:0 ] && grep -q 'breakwater: error: .*lora-r' scaling-"$job_id".out || fail "$(cat scaling-"$job_id".out)"
note "done"
