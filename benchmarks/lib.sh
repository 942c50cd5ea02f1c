# shellcheck shell=bash
# What the comparisons with the peers share. Sourced by run.sh, decode.sh and merge.sh, which set $here.
# Settings, from the environment:
#   BW_PROGRAM   the program; otherwise it is built
#   BW_PYTHON    a python that has torch, transformers and peft; otherwise a virtual environment is made in BW_BENCH_VENV
#   BW_BENCH_VENV  outside the tree; ~/.cache/breakwater/bench-venv
#   DATA         JSONL of {question, answer} or {instruction, output}; otherwise rows as long as GSM8K's are made from a seed
#   ROWS 256  THREADS (all cores)
threads=${THREADS:-$(nproc)}
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_hwloc_base_binding_policy=none OMPI_MCA_mpi_yield_when_idle=1
program=${BW_PROGRAM:-$(bash "$here/../jobs/build.sh" release breakwater)/breakwater}

python_of_the_peer() {
  local venv=${BW_BENCH_VENV:-$HOME/.cache/breakwater/bench-venv}
  if [ ! -x "$venv/bin/python" ] || ! "$venv/bin/python" -c 'import torch, transformers, peft' 2>/dev/null; then
    echo "making $venv with torch, transformers and peft (once; a few minutes)" >&2
    python3 -m venv "$venv" >&2
    "$venv/bin/pip" install --quiet torch transformers peft >&2
  fi
  echo "$venv/bin/python"
}

# The peer takes a Hugging Face folder of the very weights that ours reads: a merge with nothing added, written in f32.
folder_of_the_peer() {
  if [ -d "$model" ]; then
    echo "$model"
    return
  fi
  if [ ! -e "$out/model/model/config.json" ]; then
    head -n 1 "$out/rows.jsonl" >"$out/row.jsonl"
    "$program" train --stage sft --model "$model" --data "$out/row.jsonl" --output "$out/nothing" --steps 1 --batch 1 --lora-r 1 --quiet >&2
    "$program" merge --method user --model "$model" --user "$out/nothing/adapter" --scale 0 --dense f32 --output "$out/model" --quiet >&2
  fi
  echo "$out/model/model"
}

make_rows() { [ -e "$out/rows.jsonl" ] || python3 "$here/make_rows.py" --rows "${ROWS:-256}" ${DATA:+--data "$DATA"} >"$out/rows.jsonl"; }

# take_folders MODEL OUTPUT: $model and $out, whole paths, and the output folder is there.
take_folders() {
  model=$(realpath "$1")
  mkdir -p "$2"
  out=$(realpath "$2")
}
