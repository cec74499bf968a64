#!/usr/bin/env bash
# A real SLURM on one machine, to try job scripts before a cluster sees them. Debian or Ubuntu, root.
#
#   tools/local_slurm.sh up [NODES]        start (default 2 nodes), after installing what is missing
#   eval "$(tools/local_slurm.sh env)"     lets this shell's sbatch find it
#   tools/local_slurm.sh wait JOB [S]      wait for a job's end (default 300 s); exits with its code
#   tools/local_slurm.sh crash NODE        power failure: all that runs on the node is gone
#   tools/local_slurm.sh boot NODE         and back again
#   tools/local_slurm.sh status | down | install
#
# Each node is a slurmd in namespaces of its own (network, host name, processes, /dev/shm), so nodes
# have names, addresses and ports of their own and share nothing but the file system. Where the
# kernel refuses namespaces, nodes share the machine's name and address: LOCAL_SLURM_NET=loopback.
# GPUs, CPUs and memory are invented; nothing is enforced. Accounting is a stand-in for `sacct -j`
# that asks the controller. The nodes reach each other and nothing else.
#
# Settings: LOCAL_SLURM_ROOT (/tmp/local-slurm), LOCAL_SLURM_NET (auto|netns|loopback),
# LOCAL_SLURM_GPUS (8), LOCAL_SLURM_TIMEOUT (15: seconds until a silent node counts as lost).
set -euo pipefail

root=${LOCAL_SLURM_ROOT:-/tmp/local-slurm}
net=${LOCAL_SLURM_NET:-auto}
gpus=${LOCAL_SLURM_GPUS:-8}
timeout=${LOCAL_SLURM_TIMEOUT:-15}
subnet=10.213.77
bridge=mreason0
export SLURM_CONF=$root/etc/slurm.conf

say() { printf 'local_slurm: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

# ------------------------------------------------------------------ daemons, known by pid and start
# A number that has been given to another process since does not match; a zombie counts as gone.
born() { awk '{ sub(/^.*\) /, ""); if ($1 != "Z") print $20 }' "/proc/$1/stat" 2>/dev/null; }
daemon() { # name command...: start in the background, note pid and birth
  local name=$1
  shift
  setsid "$@" </dev/null >>"$root/log/$name.out" 2>&1 9>&- &
  local pid=$!
  disown
  printf '%s %s\n' "$pid" "$(born "$pid")" >"$root/pids/$name"
}
pid_of() {
  local pid birth
  read -r pid birth 2>/dev/null <"$root/pids/$1" || return 1
  [ -n "$birth" ] && [ "$(born "$pid")" = "$birth" ] && echo "$pid"
}
end() { # name signal
  local pid
  if pid=$(pid_of "$1"); then
    kill "-$2" "$pid" 2>/dev/null || true
    for _ in {1..100}; do pid_of "$1" >/dev/null || break; sleep 0.05; done
    ! pid_of "$1" >/dev/null || kill -KILL "$pid" 2>/dev/null || true
  fi
  rm -f "$root/pids/$1"
}
await() { # seconds what command...
  local end=$((SECONDS + $1)) what=$2
  shift 2
  until "$@" >/dev/null 2>&1; do
    ((SECONDS < end)) || die "$what did not come up; see $root/log"
    sleep 0.05
  done
}

# ------------------------------------------------------------------ packages
install_missing() {
  local missing=()
  command -v slurmctld >/dev/null || missing+=(slurmctld)
  command -v slurmd >/dev/null || missing+=(slurmd)
  command -v sbatch >/dev/null || missing+=(slurm-client)
  command -v munged >/dev/null || missing+=(munge)
  command -v ip >/dev/null || missing+=(iproute2)
  [ ${#missing[@]} -gt 0 ] || return 0
  command -v apt-get >/dev/null || die "install ${missing[*]} first"
  say "installing ${missing[*]}"
  # The packages must not start daemons of their own.
  local policy=/usr/sbin/policy-rc.d ours=false failed=false
  [ -e $policy ] || { printf '#!/bin/sh\nexit 101\n' >$policy; chmod 755 $policy; ours=true; }
  { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install --yes \
    --no-install-recommends "${missing[@]}"; } >"$root/log/apt.log" 2>&1 || failed=true
  ! $ours || rm -f $policy
  ! $failed || { tail -n 5 "$root/log/apt.log" >&2; die "apt-get failed: $root/log/apt.log"; }
}

# ------------------------------------------------------------------ network
namespaces_work() {
  ip netns add mreason-probe 2>/dev/null || return 1
  local answer=0
  ip netns exec mreason-probe unshare --uts --pid --fork --mount --mount-proc true 2>/dev/null ||
    answer=1
  ip netns del mreason-probe
  return $answer
}
address() { if [ "$net" = netns ]; then echo "$subnet.$((10 + $1))"; else echo 127.0.0.1; fi; }
controller() { if [ "$net" = netns ]; then echo "$subnet.1"; else echo 127.0.0.1; fi; }
network_up() {
  local i
  if [ "$net" = loopback ]; then
    for ((i = 1; i <= nodes; i++)); do echo "127.0.0.1 node$i # local_slurm" >>/etc/hosts; done
    return
  fi
  # If the bridge should be missing, packets for the nodes die here instead of leaving the machine.
  ip route replace blackhole "$subnet.0/24" metric 4000000
  ip link add $bridge type bridge
  ip addr add "$subnet.1/24" dev $bridge
  ip link set $bridge up
  for ((i = 1; i <= nodes; i++)); do
    ip netns add "mreason-node$i"
    mkdir -p "/etc/netns/mreason-node$i"
    names >"/etc/netns/mreason-node$i/hosts"
    echo "# none" >"/etc/netns/mreason-node$i/resolv.conf"
    ip link add "mreason-v$i" type veth peer name eth0 netns "mreason-node$i"
    ip link set "mreason-v$i" master $bridge up
    ip -n "mreason-node$i" addr add "$(address "$i")/24" dev eth0
    ip -n "mreason-node$i" link set lo up
    ip -n "mreason-node$i" link set eth0 up
  done
}
names() {
  local i
  printf '127.0.0.1 localhost\n::1 localhost ip6-localhost\n%s %s\n' "$(controller)" "$(hostname -s)"
  # Reverse look-ups of dual-stack sockets want the mapped address, under a name of its own: under
  # the node's, `hostname --ip-address` would print two addresses.
  for ((i = 1; i <= nodes; i++)); do
    printf '%s node%s\n::ffff:%s node%s.mapped\n' "$(address "$i")" "$i" "$(address "$i")" "$i"
  done
}
network_down() {
  local name
  command -v ip >/dev/null || return 0
  for name in $(ip netns list 2>/dev/null | awk '/^mreason-node/ { print $1 }'); do
    ip netns del "$name" 2>/dev/null || true
    rm -rf "/etc/netns/$name"
  done
  for name in $(ip -o link show type veth 2>/dev/null | sed -n 's/^[0-9]*: \(mreason-v[0-9]*\)@.*/\1/p'); do
    ip link del "$name" 2>/dev/null || true
  done
  ip link del $bridge 2>/dev/null || true
  ip route del blackhole "$subnet.0/24" metric 4000000 2>/dev/null || true
  # /etc/hosts may be a mount, which cannot be replaced, only written.
  ! grep -q '# local_slurm$' /etc/hosts || sed '/# local_slurm$/d' /etc/hosts >"$root/hosts" &&
    { [ ! -s "$root/hosts" ] || cat "$root/hosts" >/etc/hosts; rm -f "$root/hosts"; }
}

# ------------------------------------------------------------------ configuration
configure() {
  local i name
  mkdir -p "$root"/{etc,bin,dev,munge,spool,state}
  # SLURM hands out device files; these are twins of /dev/null.
  for ((i = 0; i < gpus; i++)); do mknod -m 666 "$root/dev/gpu$i" c 1 3; done
  cat >"$SLURM_CONF" <<CONF
ClusterName=local
SlurmctldHost=$(hostname -s)($(controller))
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
# Also the time a requeued job waits before it starts again; the default is two minutes.
AuthInfo=socket=$root/munge/socket,cred_expire=5
StateSaveLocation=$root/state
SlurmdSpoolDir=$root/spool/%n
SlurmctldPidFile=$root/slurmctld.pid
SlurmdPidFile=$root/spool/%n.pid
SlurmctldLogFile=$root/log/slurmctld.log
SlurmdLogFile=$root/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
MailProg=/bin/true
ReturnToService=2
SlurmctldTimeout=30
SlurmdTimeout=$timeout
InactiveLimit=0
KillWait=15
MinJobAge=3600
BatchStartTimeout=10
CompleteWait=0
JobRequeue=1
SchedulerType=sched/backfill
SchedulerParameters=sched_min_interval=0,batch_sched_delay=0,sched_interval=5,bf_interval=3
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
# Believe the sizes below; a job that asks for no memory would otherwise take a whole node's.
SlurmdParameters=config_overrides
DefMemPerCPU=4000
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
GresTypes=gpu
CONF
  for ((i = 1; i <= nodes; i++)); do
    name=node$i
    [ "$net" = netns ] || name=$(hostname -s)
    echo "NodeName=node$i NodeHostname=$name NodeAddr=$(address "$i")" \
      "Port=$([ "$net" = netns ] && echo 6818 || echo $((6900 + i))) Sockets=2 CoresPerSocket=32" \
      "ThreadsPerCore=1 RealMemory=512000 Gres=gpu:h100:$gpus State=UNKNOWN"
  done >>"$SLURM_CONF"
  for name in batch h100 a100; do
    echo "PartitionName=$name Nodes=ALL Default=$([ $name = batch ] && echo YES || echo NO)" \
      "DefaultTime=01:00:00 MaxTime=INFINITE State=UP"
  done >>"$SLURM_CONF"
  echo "Name=gpu Type=h100 Flags=nvidia_gpu_env File=$root/dev/gpu[0-$((gpus - 1))]" \
    >"$root/etc/gres.conf"
  [ "$gpus" -gt 0 ] || : >"$root/etc/gres.conf"
  echo "CgroupPlugin=cgroup/v1" >"$root/etc/cgroup.conf"
  cat >"$root/bin/sacct" <<'SACCT'
#!/usr/bin/env bash
# `sacct --parsable2 -j ID` without a database: what the controller still knows of the job.
while [ $# -gt 0 ]; do case $1 in -j) id=$2 ;; --jobs=*) id=${1#*=} ;; -j*) id=${1#-j} ;; esac; shift; done
echo 'JobID|JobName|Partition|Account|AllocCPUS|State|ExitCode'
for one in ${id//,/ }; do
  scontrol --oneliner show job "$one" 2>/dev/null | awk '{
    split("", field)
    for (i = 1; i <= NF; i++) if ((at = index($i, "=")) && !((key = substr($i, 1, at - 1)) in field))
      field[key] = substr($i, at + 1)
    print field["JobId"] "|" field["JobName"] "|" field["Partition"] "|" field["Account"] "|" \
      field["NumCPUs"] "|" field["JobState"] "|" field["ExitCode"] }'
done
SACCT
  cat >"$root/bin/node" <<NODE
#!/usr/bin/env bash
# The first process of a node: when it dies, all others on the node die.
hostname "\$1"
mount -t tmpfs -o size=4g tmpfs /dev/shm
export SLURM_CONF=$SLURM_CONF
slurmd -D -N "\$1" -f "$SLURM_CONF" &
while :; do sleep 3600 & wait \$!; done
NODE
  chmod 755 "$root/bin/sacct" "$root/bin/node"
}

# ------------------------------------------------------------------ commands
settings() { [ -r "$root/settings" ] && read -r nodes net <"$root/settings"; }
start_node() {
  mkdir -p "$root/spool/node$1"
  if [ "$net" = netns ]; then
    daemon "node$1" ip netns exec "mreason-node$1" unshare --uts --ipc --pid --fork \
      --kill-child=KILL --mount --mount-proc "$root/bin/node" "node$1"
  else
    daemon "node$1" slurmd -D -N "node$1" -f "$SLURM_CONF"
  fi
}
all_ready() {
  [ "$(sinfo --noheader --Node --partition=batch --format=%T | grep -cE '^(idle|mixed|allocated)$')" = "$nodes" ]
}
up() {
  [ "$(id -u)" = 0 ] || die "must be root: it starts daemons and makes network namespaces"
  local wanted=${1:-2} i
  [[ $wanted =~ ^[1-9][0-9]?$ ]] || die "NODES is a number from 1 to 99, not '$wanted'"
  if (settings && [ "$nodes" = "$wanted" ] && pid_of slurmctld >/dev/null && all_ready); then
    say "already up with $wanted nodes"
    return
  fi
  down
  trap '[ $? = 0 ] || { say "failed: taking it down"; (down) || true; }' EXIT
  rm -rf "${root:?}"/{etc,bin,dev,munge,spool,state,pids,log}
  mkdir -p "$root"/{log,pids}
  install_missing
  nodes=$wanted
  [ "$net" != auto ] || { net=loopback; ! namespaces_work || net=netns; }
  echo "$nodes $net" >"$root/settings"
  configure
  network_up
  (umask 077; head -c 128 /dev/urandom >"$root/munge/key")
  chmod 755 "$root" "$root/munge"
  daemon munged munged --foreground --key-file="$root/munge/key" --socket="$root/munge/socket" \
    --pid-file="$root/munge/pid" --log-file="$root/log/munged.log" --seed-file="$root/munge/seed"
  await 10 munged munge -S "$root/munge/socket" -n
  daemon slurmctld slurmctld -D -f "$SLURM_CONF"
  await 20 slurmctld scontrol ping
  for ((i = 1; i <= nodes; i++)); do start_node "$i"; done
  await 60 "a node" all_ready
  trap - EXIT
  say "$nodes nodes are up ($net); eval \"\$($0 env)\" lets sbatch find them"
}
down() {
  local name
  settings || true
  if [ "$net" = loopback ] && pid_of slurmctld >/dev/null; then
    scancel --user="$(id -un)" || true # no namespaces that would end the jobs with the nodes
    for _ in {1..100}; do [ -n "$(squeue --noheader)" ] || break; sleep 0.1; done
  fi
  for name in "$root"/pids/node*; do [ ! -e "$name" ] || end "$(basename "$name")" KILL; done
  end slurmctld TERM
  end munged TERM
  network_down
  rm -f "$root/settings"
  net=${LOCAL_SLURM_NET:-auto}
}
show() {
  settings || { echo "down"; exit 3; }
  sinfo --Node --format='%N %T %G'
  squeue
}
wait_for() {
  local job=$1 end=$((SECONDS + ${2:-300})) shown state code
  while :; do
    shown=$(scontrol --oneliner show job "$job") || die "there is no job $job"
    state=$(grep -o 'JobState=[A-Z_]*' <<<"$shown" | sort -u | cut -d= -f2 | tr '\n' ' ')
    grep -qE 'PENDING|RUNNING|COMPLETING|CONFIGURING|REQUEUED|SUSPENDED' <<<"$state" || break
    ((SECONDS < end)) || { echo "$job: still $state"; exit 124; }
    sleep 0.1
  done
  echo "$job: $state"
  [ "$state" != "COMPLETED " ] || exit 0
  code=$(grep -o ' ExitCode=[0-9]*' <<<"$shown" | cut -d= -f2 | sort -n | tail -n 1)
  exit "$((code > 0 ? code : 1))"
}
boot() {
  settings || die "not up"
  start_node "${1#node}"
  await 30 "$1" bash -c "sinfo --noheader --nodes=$1 --format=%T | grep -qE '^(idle|mixed|allocated)\$'"
}

nodes=0
case ${1:-} in
  up | down) mkdir -p "$root"; exec 9>"$root.lock"; flock -w 120 9 || die "another up or down runs"
    "$@" ;;
  env) printf '%s\n' "export SLURM_CONF=$SLURM_CONF" "export PATH=$root/bin:\$PATH" ;;
  wait) shift; wait_for "$@" ;;
  crash) settings || die "not up"; end "$2" KILL ;;
  boot) boot "$2" ;;
  status) show ;;
  install) mkdir -p "$root/log"; install_missing ;;
  *) sed -n '2,/^set -e/p' "$0" | sed '$d; s/^# \{0,1\}//'; exit 2 ;;
esac
