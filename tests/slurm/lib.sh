# Shared by the Slurm tests: a real cluster of two nodes on this machine (munged, slurmctld, two slurmd) in a folder of its own, on free ports,
# and gone at the end. Sourced by bash; adds to system/lib.sh.
for tool in slurmctld slurmd munged sbatch srun squeue scontrol scancel unshare; do
  PATH=$PATH:/usr/sbin:/sbin command -v "$tool" >/dev/null || { echo "SKIPPED: no $tool (jobs/install-deps.sh --tests)"; exit 77; }
done
export PATH=$PATH:/usr/sbin:/sbin
[ "$(id -u)" -eq 0 ] || { echo "SKIPPED: slurmd needs root here (each node gets a hostname of its own)"; exit 77; }
unshare --uts true 2>/dev/null || { echo "SKIPPED: this container does not allow a hostname of its own (unshare --uts)"; exit 77; }
. "$(dirname "${BASH_SOURCE[0]}")/../system/lib.sh"

jobs="$work/our jobs" # paths with a blank are paths
cp -r "$BW_TEST_DATA/../jobs" "$jobs"
cluster=$work/cluster

# stop_process PIDFILE NAME: a recycled process id is not ours.
stop_process() {
  local pid
  pid=$(cat "$1" 2>/dev/null) && [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "$2" ] || return 0
  kill "$pid" 2>/dev/null || true
  for _ in $(seq 100); do kill -0 "$pid" 2>/dev/null || return 0; sleep 0.1; done
  kill -9 "$pid" 2>/dev/null || true
}

leave() {
  if [ -s "$cluster/slurmctld.pid" ]; then
    scancel --user=root --quiet 2>/dev/null || true
    scancel --user=root --quiet --full --signal=KILL 2>/dev/null || true
    for _ in $(seq 60); do [ -n "$(squeue --noheader 2>/dev/null)" ] || break; sleep 0.2; done
  fi
  for node in n1 n2; do stop_process "$cluster/slurmd-$node.pid" slurmd; done
  stop_process "$cluster/slurmctld.pid" slurmctld
  stop_process "$cluster/munged.pid" munged
  rm -rf "$work"
}

port_is_free() { ! (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# Three neighbouring free ports; the first is $port.
find_ports() {
  for port in $(shuf -i 16000-28000 -n 50); do
    ! port_is_free "$port" || ! port_is_free $((port + 1)) || ! port_is_free $((port + 2)) || return 0
  done
  fail "no three free ports"
}

# Two nodes share this machine: each has a temporary folder of its own (PMIx) and claims four cores, whatever there are.
write_configuration() {
  cat >"$cluster/slurm.conf" <<END
ClusterName=breakwater
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=$port
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$cluster/munge/socket
StateSaveLocation=$cluster/state
SlurmdSpoolDir=$cluster/spool-%n
TmpFS=$cluster/tmp-%n
SlurmctldPidFile=$cluster/slurmctld.pid
SlurmdPidFile=$cluster/slurmd-%n.pid
SlurmctldLogFile=$cluster/slurmctld.log
SlurmdLogFile=$cluster/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
PropagateResourceLimits=NONE
ReturnToService=2
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MinJobAge=3600
KillWait=5
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
SchedulerParameters=bf_interval=2,sched_min_interval=0,batch_sched_delay=0
NodeName=n1 NodeHostname=n1 NodeAddr=127.0.0.1 Port=$((port + 1)) CPUs=4 RealMemory=4096
NodeName=n2 NodeHostname=n2 NodeAddr=127.0.0.1 Port=$((port + 2)) CPUs=4 RealMemory=4096
PartitionName=batch Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=20 MaxTime=60 DefaultTime=10
PartitionName=urgent Nodes=ALL PriorityTier=10 PreemptMode=OFF MaxTime=60 DefaultTime=10
END
  echo "CgroupPlugin=cgroup/v1" >"$cluster/cgroup.conf" # nothing here uses cgroups, but asking for the kernel's own kind needs /sys/fs/cgroup
}

start_cluster() {
  mkdir -p "$cluster"/{munge,state,spool-n1,spool-n2,tmp-n1,tmp-n2}
  chmod 755 "$work" "$cluster" "$cluster/munge" # munged refuses a socket in a folder that others may write to
  (umask 077 && head -c 1024 /dev/urandom >"$cluster/munge/key")
  find_ports
  write_configuration
  export SLURM_CONF=$cluster/slurm.conf
  munged --key-file="$cluster/munge/key" --socket="$cluster/munge/socket" --pid-file="$cluster/munged.pid" --log-file="$cluster/munged.log" \
    --seed-file="$cluster/munge/seed" --num-threads=2 2>"$cluster/munged.err" || fail "munged does not start: $(cat "$cluster/munged.err")"
  slurmctld -f "$SLURM_CONF" 2>"$cluster/slurmctld.err" || fail "slurmctld does not start: $(cat "$cluster/slurmctld.err")"
  for node in n1 n2; do
    unshare --uts sh -c 'hostname $1; exec slurmd -f "$2" -N $1' - "$node" "$SLURM_CONF" || fail "slurmd does not start: $(tail -3 "$cluster/slurmd-$node.log")"
  done
  for _ in $(seq 120); do
    [ "$(sinfo --noheader --Node --format=%T 2>/dev/null | sort -u)" != idle ] || return 0
    sleep 0.25
  done
  fail "the nodes do not come up: $(sinfo --Node 2>&1; tail -3 "$cluster"/*.log)"
}

# What Open MPI needs where two nodes are one machine; jobs inherit it.
export OMPI_MCA_btl_tcp_if_include=lo OMPI_MCA_oob_tcp_if_include=lo OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1

# site LAUNCHER: the site's facts for these jobs.
site() {
  export BREAKWATER_SITE=$work/site.conf
  sed -e "s|^program=.*|program=$BW_PROGRAM|" -e "s|^launcher=.*|launcher=$1|" -e 's|--ntasks-per-node=[0-9]* --time=[0-9:]*|--ntasks-per-node=2 --time=10|' \
    "$jobs/site.conf" >"$BREAKWATER_SITE"
}

field() { scontrol show job --oneliner "$1" | tr ' ' '\n' | sed -n "s/^$2=//p" | head -n 1; }
state() { field "$1" JobState; }

# await_state JOB PATTERN: until its state fits; the two minutes that a requeued job waits are skipped.
await_state() {
  local deadline=$((SECONDS + patience)) now
  until now=$(state "$1") && [[ $now =~ ^($2)$ ]]; do
    [ $SECONDS -lt $deadline ] || fail "job $1 is $now where $2 belongs: $(cat "$work"/*-"$1".out)"
    hurry "$1"
    sleep 0.2
  done
}

# A second start within seconds of the first finds its nodes still cleaning up: not what the two minutes are for.
hurry() {
  [ "$(field "$1" JobState)/$(field "$1" Reason)" = PENDING/BeginTime ] || return 0
  sleep 2
  scontrol update JobId="$1" StartTime=now 2>/dev/null || true
}

# await_restart JOB TIMES: until it runs for the time that counts from 0 on. Its state in between is too short to be relied on.
await_restart() {
  local deadline=$((SECONDS + patience))
  until [ "$(grep -c ": start $2 " "$work"/*-"$1".out)" -gt 0 ]; do
    [ $SECONDS -lt $deadline ] && [[ ! $(state "$1") =~ ^($over)$ ]] || fail "job $1 is $(state "$1") where start $2 belongs: $(cat "$work"/*-"$1".out)"
    hurry "$1"
    sleep 0.2
  done
}

over='COMPLETED|FAILED|CANCELLED|TIMEOUT|NODE_FAIL|PREEMPTED'

# await_step FOLDER STEP JOB
await_step() {
  local deadline=$((SECONDS + patience))
  until [ "$(tail -n 1 "$1/metrics.jsonl" 2>/dev/null | sed -n 's/^{"step": \([0-9]*\),.*/\1/p')" -ge "$2" ] 2>/dev/null; do
    [ $SECONDS -lt $deadline ] || fail "step $2 does not come in $1 (job $3 is $(state "$3")): $(cat "$work"/*-"$3".out)"
    [[ ! $(state "$3") =~ ^($over)$ ]] || fail "job $3 is $(state "$3") before step $2 in $1: $(cat "$work"/*-"$3".out)"
    hurry "$3"
    sleep 0.1
  done
}
