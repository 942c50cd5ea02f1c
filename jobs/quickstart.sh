#!/usr/bin/env bash
# The main job on a real small model, from nothing: install, build, fetch SmolLM2-135M-Instruct, defend a fine-tuning job.
#   jobs/quickstart.sh [--model PATH] [--output DIR] [--seed N] [--ranks N]
# Stopped and started again, it goes on where it was. docs/architecture.md says what each stage is. In an installed tree it takes the
# installed program, and writes to the folder where it was typed.
set -euo pipefail
help=$(sed -n '2,${/^#/!q;s/^# \{0,1\}//p}' "$0")
here=$PWD # paths on the command line count from where it was typed
cd "$(dirname "$0")/.."

model='' output=demo-run models=models seed=42 ranks=$(nproc)
[ -f CMakeLists.txt ] || output=$here/demo-run models=$here/models
while [ $# -gt 0 ]; do
  case $1 in
    --model) model=$(cd "$here" && realpath -m -- "${2:?--model needs a path}") ;;
    --output) output=$(cd "$here" && realpath -m -- "${2:?--output needs a folder}") ;;
    --seed) seed=${2:?--seed needs a number} ;;
    --ranks) ranks=${2:?--ranks needs a number} ;;
    -h | --help) echo "$help"; exit 0 ;;
    *) echo "$help" >&2; exit 64 ;;
  esac
  shift 2
done

started=$(date +%s)
if [ -f CMakeLists.txt ]; then
  program=$(bash jobs/build.sh release breakwater)/breakwater
else
  program=$(realpath -m ../../bin/breakwater)
  [ -x "$program" ] || program=$(command -v breakwater) || { echo "no program in ../../bin and none in PATH: module load breakwater" >&2; exit 1; }
fi
[ -n "$model" ] || model=$(bash jobs/get-model.sh "$models")

# One rank a core, one thread a rank; ranks that wait yield, since this machine may have other things to do. Where Open MPI
# runs as root (a container) it wants to be told that this is meant.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_mpi_yield_when_idle=1
mpirun --oversubscribe --bind-to none -n "$ranks" "$program" run jobs/demo/pipeline.yaml \
  --model "$model" --output "$output" --seed "$seed" --threads 1
echo "whole run: $(( $(date +%s) - started )) s"
