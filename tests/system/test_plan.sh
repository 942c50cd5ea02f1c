#!/usr/bin/env bash
# breakwater plan: its tables, its CSV, memory that agrees with a run within a tenth, and one clear line for what cannot be.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

cluster=$BW_TEST_DATA/../benchmarks/machines/cluster.yaml llama=$BW_TEST_DATA/../benchmarks/machines/llama-3-8b.json
"$BW_MAKE_TINY" tiny 5 layers=5
rows 40 >rows.jsonl

note "tables for a config.json alone, and for a model"
run 0 plan --model "$llama" --machine "$cluster" --ranks 1,8,64,4096 --ranks-per-node 4 --recompute layer --csv plan.csv
for line in '^model .*32 layers, 4096 wide' '^ *4096 +1024 +16 ' '^  weights, pieces +rank' '^  a node, all its ranks' '^  gathered into a node'; do
  grep -Eq -- "$line" out || fail "no line like '$line'"
done
sed 's/^memory_gib:.*/memory_gib: 1/' "$cluster" >small.yaml
small=$("$BW_PROGRAM" plan --model "$llama" --machine small.yaml --ranks 1)
grep -q 'DOES NOT FIT' <<<"$small" && ! grep -q '^sbatch' <<<"$small" || fail "a job is suggested that does not fit"
[ "$(grep -c '^sbatch --nodes=' out)" -eq 4 ] || fail "not one sbatch line for each number of ranks"
[ "$(wc -l <plan.csv)" -eq 5 ] || fail "the CSV has not a header and four rows"
[ "$(awk -F, '{ print NF }' plan.csv | sort -u | wc -l)" -eq 1 ] || fail "the CSV's rows have not as many fields as its header"
mkdir lone && cp "$llama" lone/config.json
run 0 plan --model lone --machine "$cluster"

field() { awk -F, -v name="$1" 'NR == 1 { for (i = 1; i <= NF; i++) if ($i == name) at = i } NR == 2 { print $at }' plan.csv; }
counted() { awk '/^memory of rank/ { inside = 0 } inside { sum += $NF } /^memory, bytes at peak/ { inside = 1 } END { print sum }' "$1"; }

# compare RANKS WEIGHTS: what all ranks count at their peaks, against the plan without the program itself.
compare() {
  local settings=(--model tiny --stage sft --data rows.jsonl --template plain --micro-batches 4 --weights "$2" --lora-r 8 --batch 16 --steps 2)
  rm -rf job
  run "$1" train "${settings[@]}" --grid auto --replicas 1 --output job
  run 0 plan "${settings[@]}" --grid auto --replicas 1 --machine "$cluster" --ranks "$1" --csv plan.csv
  local real planned
  real=$(counted job/report.txt)
  planned=$(($(field node_bytes) - $1 * $(field program)))
  note "$1 ranks, $2: planned $planned, counted $real bytes"
  awk -v p="$planned" -v r="$real" 'BEGIN { exit !(p > 0.9 * r && p < 1.1 * r) }' || {
    cat job/report.txt && head -n 2 plan.csv
    fail "the plan's $planned bytes are not within a tenth of the run's $real"
  } >&2
}
note "memory, against runs"
for ranks in 1 2; do
  compare $ranks resident
  compare $ranks stream
done

note "the line for Slurm submits the job that was planned"
mkdir 'the data' && cp rows.jsonl "the data/rob's rows.jsonl"
planned=(--model tiny --stage sft --data "the data/rob's rows.jsonl" --template plain --seed 7 --lora-r 4 --targets q,down --lora-dropout 0.25 --max-length 60
  --store f32 --block 3 --batch 6 --micro-batches 3 --steps 2 --recompute layer --grid 2x1)
run 0 plan "${planned[@]}" --machine "$cluster" --ranks 2
line=$(grep '^sbatch ' out)
sbatch() { eval "${*: -1}"; }
srun() { shift 3 && arguments=("${@//DIR/submitted}"); }
eval "$line"
run 2 "${arguments[@]}"
run 2 train "${planned[@]}" --weights resident --threads 1 --output asked
same_adapter asked submitted "$line"
diff <(grep -Ev '^(output|weights|threads|replicas):' asked/config.yaml) <(grep -Ev '^(output|weights|threads|replicas):' submitted/config.yaml) ||
  fail "the options that were planned are not those of: $line"
sed 's/bfloat16/float64/' "$llama" >f64.json
run 0 plan --model f64.json --machine "$cluster"

note "what cannot be ends in one line"
machine() { printf '%s\n' 'cores: 4' 'gemm_gflops: 70' 'memory_gib: 16' 'memory_gbs: 20' 'network_us: 2' 'network_gbs: 10' "$@"; }
machine >good.yaml
refused() { # PATTERN argument...
  expect_fail '64|65|66' "$1" 0 plan "${@:2}"
}
refused 'needs --machine FILE' --model "$llama"
refused 'nowhere.yaml' --model "$llama" --machine nowhere.yaml
machine 'core: 3' >bad.yaml
refused 'bad.yaml:7: core: unknown in a machine file. Did you mean cores' --model "$llama" --machine bad.yaml
machine 'cores: 3' >bad.yaml
refused 'bad.yaml:7: cores: given twice' --model "$llama" --machine bad.yaml
sed -i 's/gemm_gflops: 70/gemm_gflops: fast/' good.yaml && mv good.yaml bad.yaml && machine >good.yaml
refused "gemm_gflops: 'fast' is not a number of GFLOP/s of a core" --model "$llama" --machine bad.yaml
head -c 300000 /dev/zero | tr '\0' '[' >bad.yaml
refused 'too many' --model "$llama" --machine bad.yaml
hostile() { # NAME JSON PATTERN
  printf '%s' "$2" >"$1.json"
  refused "$3" --model "$1.json" --machine good.yaml
}
hostile empty '' 'empty.json'
hostile list '[1, 2]' 'neither "architectures" nor "model_type"'
hostile family '{"architectures": ["MambaForCausalLM"]}' 'MambaForCausalLM'
hostile huge "$(sed 's/"num_hidden_layers": 32/"num_hidden_layers": 4000000000/' "$llama")" 'number of layers is 4000000000'
hostile heads "$(sed 's/"num_key_value_heads": 8/"num_key_value_heads": 7/' "$llama")" '32 attention heads cannot share 7'
hostile type "$(sed 's/bfloat16/int3/' "$llama")" "torch_dtype is 'int3'"
hostile cut "$(head -c 200 "$llama")" 'cut.json'
refused 'cannot be found' --model nowhere --machine good.yaml
refused '9 ranks do not fill nodes of 4' --model "$llama" --machine good.yaml --ranks 9
refused 'do not fit a node of 4 cores' --model "$llama" --machine good.yaml --ranks 4 --ranks-per-node 4 --threads 2
refused 'grid 3x1 .* does not fit 4 rank' --model "$llama" --machine good.yaml --ranks 4 --grid 3x1
refused 'ranks' --model "$llama" --machine good.yaml --ranks 2.5
refused 'ranks' --model "$llama" --machine good.yaml --ranks 0
expect_fail 73 'nowhere/plan.csv: cannot be created' 0 plan --model "$llama" --machine good.yaml --csv nowhere/plan.csv
note "done"
