# Shared by the system tests: where things are, how ranks are started, how a failure has to look. Sourced by bash.
set -euo pipefail
: "${BW_PROGRAM:?path of the program}" "${BW_MPIEXEC:?path of mpiexec}" "${BW_TEST_DATA:?folder tests/}" "${BW_MAKE_TINY:?path of make_tiny}"
export OMP_NUM_THREADS=1 OMPI_MCA_hwloc_base_binding_policy=none OMPI_MCA_mpi_yield_when_idle=1

work=$(mktemp -d "${TMPDIR:-/tmp}/breakwater-system.XXXXXX")
leave() {
  [ -z "${mounted:-}" ] || umount "$mounted" || true
  rm -rf "$work"
}
trap leave EXIT
cd "$work"

fail() {
  echo "FAILED: $*" >&2
  for log in out err; do
    [ ! -s "$work/$log" ] || { echo "--- std$log:" && tail -n 30 "$work/$log"; } >&2
  done
  exit 1
}

note() { echo "$(date +%T) $*"; }

# begin RANKS argument...: start the program on so many ranks in the background (0: without mpiexec); its process is $job.
begin() {
  local ranks=$1
  shift
  local launch=("$BW_MPIEXEC" --oversubscribe --allow-run-as-root -n "$ranks")
  [ "$ranks" -gt 0 ] || launch=()
  : >"$work/out" # the process in the background comes to that later, and what the last one said must not be taken for this one's
  "${launch[@]}" "$BW_PROGRAM" "$@" </dev/null >"$work/out" 2>"$work/err" &
  job=$!
}

# end: wait for $job; its exit code is $status. What hangs is killed after `patience` seconds, and has status 124.
patience=${BW_PATIENCE:-300} # other work on the machine can make a second's run take a minute
end() {
  local deadline=$((SECONDS + patience))
  status=0
  while kill -0 "$job" 2>/dev/null && [ $SECONDS -lt $deadline ]; do sleep 0.05; done
  if kill -0 "$job" 2>/dev/null; then
    kill -9 $(ranks_of "$job") "$job" 2>/dev/null || true
    wait "$job" || true
    status=124
  else
    wait "$job" || status=$?
  fi
}

# The ranks that an mpiexec started: its children that run the program.
ranks_of() {
  local child
  for child in $(cat "/proc/$1/task/$1/children" 2>/dev/null); do
    [ ! "/proc/$child/exe" -ef "$BW_PROGRAM" ] || echo "$child"
  done
}

# run RANKS argument...: has to succeed.
run() {
  begin "$@"
  end
  [ "$status" -eq 0 ] || fail "exit code $status from $1 ranks of: breakwater ${*:2}"
}

# expect_fail CODE PATTERN RANKS argument...: this exit code (a pattern, too), no hang, and one line from one rank that fits the extended pattern.
expect_fail() {
  local code=$1 pattern=$2
  shift 2
  begin "$@"
  end
  [ "$status" -ne 124 ] || fail "hangs: $1 ranks of: breakwater ${*:2}"
  [[ $status =~ ^($code)$ ]] || fail "exit code $status where $code belongs, $1 ranks of: breakwater ${*:2}"
  [ "$(grep -c '^breakwater: error: ' "$work/err")" -eq 1 ] || fail "not exactly one line of error, $1 ranks of: breakwater ${*:2}"
  grep '^breakwater: error: ' "$work/err" | grep -Eq -- "$pattern" || fail "the message does not fit '$pattern': breakwater ${*:2}"
}

# Warnings of the last run, but that of more ranks than this machine has cores.
warnings() { grep '^breakwater: warning: ' "$work/err" | grep -v ': start fewer ranks' || true; }

# SHA-256 of the adapter that a training stage left in a folder.
sha() { sha256sum <"$1/adapter/adapter_model.safetensors" | cut -d' ' -f1; }

same_adapter() { [ "$(sha "$1")" = "$(sha "$2")" ] || fail "$3: the adapter in $2 differs from the one in $1"; }

# rows COUNT: training rows of uneven lengths, as JSONL.
rows() {
  local word=("sea" "a harbour" "waves and wind" "the long stone wall" "x")
  for ((i = 1; i <= $1; i++)); do
    printf '{"instruction": "Row %d: say %s.", "output": "%s %d"}\n' "$i" "${word[i % 5]}" "${word[(i * 3) % 5]}" $((i * i))
  done
}

# wait_for_step FOLDER STEP: until metrics.jsonl has that step; fails when the job ends before.
wait_for_step() {
  local deadline=$((SECONDS + patience))
  until grep -q "^{\"step\": $2," "$1/metrics.jsonl" 2>/dev/null; do
    kill -0 "$job" 2>/dev/null || fail "ended before step $2 in $1"
    [ $SECONDS -lt $deadline ] || fail "step $2 does not come in $1"
    sleep 0.02
  done
}

# ---- checkpoints -------------------------------------------------------------------------------------------------------

steps_in() { sed -n 's/^{"step": \([0-9]*\),.*}$/\1/p' "$1/metrics.jsonl"; }
each_step_once() { # FOLDER STEPS
  [ "$(steps_in "$1")" = "$(seq "$2")" ] || fail "$1/metrics.jsonl does not have each of $2 steps once, in order"
}
checkpoints() { ls "$1/checkpoints" 2>/dev/null | sed -n 's/^step-0*\([0-9]*\)\.h5$/\1/p' | sort -n; }
newest() { checkpoints "$1" | tail -n 1; }
ends_like() { # REFERENCE FOLDER STEPS WHAT
  same_adapter "$1" "$2" "$4"
  each_step_once "$2" "$3"
  [ -z "$(ls "$2"/checkpoints/*.tmp* "$2"/*.tmp* 2>/dev/null)" ] || fail "$4: a temporary file stays behind"
}
checkpoint_file() { printf '%s/checkpoints/step-%06d.h5' "$1" "$2"; } # FOLDER STEP

cut_in_half() { truncate -s $(($(stat -c %s "$1") / 2)) "$1"; }

# One bit of one number.
flip_bit() {
  local offset byte
  offset=$(h5dump -p -H -d /lora/001/up/B "$1" | sed -n 's/.*OFFSET \([0-9]*\).*/\1/p')
  [ -n "$offset" ] || fail "h5dump does not say where /lora/001/up/B lies in $1"
  byte=$(od -An -tu1 -j $((offset + 101)) -N 1 "$1")
  printf "\\x$(printf %x $((byte ^ 16)))" | dd of="$1" bs=1 seek=$((offset + 101)) conv=notrunc status=none
}
