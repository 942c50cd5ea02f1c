#!/usr/bin/env bash
# Two hosts: network namespaces with names of their own, and TCP between them. The adapter has the bytes of one rank on one host.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# Names that no other test on this machine has at the same time. An interface's name has at most 15 bytes.
one=bw$$a two=bw$$b
drop_hosts() {
  local host
  for host in "$one" "$two"; do
    ip netns pids "$host" 2>/dev/null | xargs -r kill -9 2>/dev/null || true # what hangs would keep it
    ip netns delete "$host" 2>/dev/null || true
  done
  leave
}
trap drop_hosts EXIT
make_hosts() {
  local host
  ip netns add "$one" && ip netns add "$two" && ip link add bwnet netns "$one" type veth peer name bwnet netns "$two" || return
  ip -n "$one" address add 10.113.0.1/24 dev bwnet && ip -n "$two" address add 10.113.0.2/24 dev bwnet || return
  for host in "$one" "$two"; do ip -n "$host" link set lo up && ip -n "$host" link set bwnet up || return; done
  ip netns exec "$one" unshare --uts true
}
make_hosts 2>err || { echo "SKIP: no network namespaces here: $(cat err)" && exit 77; }

# What mpirun starts its daemons with: a command on a "host", which has its own name, so that no memory is shared between them.
cat >on-host <<'END_OF_SCRIPT'
#!/bin/sh
host=$1
shift
exec ip netns exec "$host" unshare --uts sh -c 'hostname "$0" && exec sh -c "$1"' "$host" "$*"
END_OF_SCRIPT
chmod +x on-host
network=(--mca plm_rsh_agent "$work/on-host" --mca pml ob1 --mca btl tcp,self --mca btl_tcp_if_include bwnet --mca oob_tcp_if_include bwnet)

bytes_between() { ip netns exec "$one" cat /sys/class/net/bwnet/statistics/tx_bytes; }

# run_on_hosts RANKS_A_HOST argument...: has to succeed; what went over the wire is in $sent.
run_on_hosts() {
  local slots=$1 before
  shift
  printf '%s slots=%d\n%s slots=%d\n' "$one" "$slots" "$two" "$slots" >hostfile
  before=$(bytes_between)
  ./on-host "$one" "$BW_MPIEXEC" "${network[@]}" --hostfile "$work/hostfile" --allow-run-as-root --oversubscribe \
    -n $((2 * slots)) "$BW_PROGRAM" "$@" </dev/null >out 2>err &
  job=$!
  end
  [ "$status" -eq 0 ] || fail "exit code $status from $slots ranks on each of two hosts: breakwater $*"
  sent=$(($(bytes_between) - before))
}

rows 24 >rows.jsonl
train=(train --stage sft --model "$BW_TEST_DATA/golden/tiny/model" --template plain --data rows.jsonl --micro-batches 4 --lr 1e-3 --lora-r 8
  --steps 6 --checkpoint-steps 3 --checkpoint-minutes 0 --threads 1)
run 1 "${train[@]}" --output whole

for slots in 1 2; do
  for weights in resident stream; do
    note "$slots ranks a host, weights $weights"
    output=$weights-$slots
    run_on_hosts "$slots" "${train[@]}" --weights "$weights" --output "$output"
    grep -q "^grid .* 2 nodes$" out || fail "not two nodes: $(grep '^grid' out)"
    grep -Eq "^(2 hosts x $slots ranks? x 1 thread|  $two: $slots ranks? x 1 thread)" out || fail "the second host is not named"
    # A step sends every rank's gradients; 100 kB are far more than the launcher's own traffic of a run.
    [ "$sent" -gt 100000 ] || fail "only $sent bytes went from host to host"
    ends_like whole "$output" 6 "$slots ranks on each of two hosts, weights $weights"
    echo "  $sent bytes from $one to $two"
  done
done

note "begun on two hosts, gone on with on one"
cp -r stream-1 one-host
rm -r one-host/adapter one-host/checkpoints/step-000006.h5
run 3 "${train[@]}" --output one-host
grep -q "resuming after step 3 of 6" out || fail "it did not go on after step 3"
ends_like whole one-host 6 "begun on two hosts"
note "done"
