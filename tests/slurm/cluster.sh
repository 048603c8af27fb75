#!/usr/bin/env bash
# A real SLURM of three nodes on one machine, without systemd, for tests: munged, slurmctld and one slurmd per node.
#
#   cluster.sh start DIR | stop DIR | run DIR COMMAND...     DIR holds all its files
#   cluster.sh at DIR NODE COMMAND...                        on a node
#
# Every node is a set of namespaces (network, mount, UTS, IPC, PID) with its own host name, address and /etc/hosts;
# the controller is one more and holds the bridges: SLURM's, on which the nodes have their names, and one for data
# alone, their eth1, that can be cut while SLURM lives. There is no way out: a run that needs the internet fails here.
# Nothing outside DIR changes, and `stop` ends only processes whose ids stand in DIR. Needs root.
# Environment: CLUSTER_NODES=3, CLUSTER_CPUS=8 and CLUSTER_GPUS=0 (made up) per node, CLUSTER_PROCTRACK=proctrack/pgid.
set -euo pipefail

command=${1:?start, stop or run}
dir=$(realpath -m "${2:?the folder of the cluster}")
shift 2
cpus=${CLUSTER_CPUS:-8} gpus=${CLUSTER_GPUS:-0} net=10.214.0 data_net=10.215.0
declare -A address=([ctl]=254)
for ((n = 1; n <= ${CLUSTER_NODES:-3}; n++)); do address[node$n]=$n; done
mapfile -t nodes < <(printf '%s\n' "${!address[@]}" | grep -v ctl | sort)
export SLURM_CONF=$dir/slurm.conf PATH=/usr/local/sbin:/usr/sbin:/sbin:$PATH

inside() {  # HOST COMMAND...: run it in the namespaces of HOST, in the current folder
  local pid
  pid=$(cat "$dir/$1.pid")
  shift
  nsenter --target "$pid" --mount --uts --ipc --net --pid --wd="$PWD" -- "$@"
}

configure() {
  mkdir -p "$dir"/{log,state,spool,munge,dev}
  chmod 755 "$dir"
  (umask 077 && head -c 1024 /dev/urandom >"$dir/munge/key")
  # cred_expire: a requeued job starts again after seconds instead of two minutes.
  # proctrack/pgid signals only a step's first process, as production's cgroups do; linuxproc would hide mistakes.
  cat >"$SLURM_CONF" <<CONF
ClusterName=test
SlurmctldHost=ctl($net.254)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=cred_expire=5,socket=$dir/munge/socket
CredType=cred/munge
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmctldPidFile=$dir/state/slurmctld.pid
SlurmdPidFile=$dir/state/slurmd-%n.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/slurmd-%n.log
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool/%n
PlugStackConfig=/dev/null
ProctrackType=${CLUSTER_PROCTRACK:-proctrack/pgid}
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
ReturnToService=2
SlurmdTimeout=10
MessageTimeout=5
KillWait=5
InactiveLimit=0
SchedulerParameters=batch_sched_delay=0,sched_interval=2,sched_min_interval=0
$(for name in "${nodes[@]}"; do
  echo "NodeName=$name NodeAddr=$net.${address[$name]} CPUs=$cpus RealMemory=8192 Gres=gpu:$gpus State=UNKNOWN"
done)
PartitionName=all Nodes=ALL Default=YES DefaultTime=60 MaxTime=INFINITE State=UP
CONF
  [[ $gpus != 0 ]] || sed -i 's/ Gres=gpu:0//' "$SLURM_CONF"
  for ((i = 0; i < gpus; i++)); do mknod "$dir/dev/nvidia$i" c 1 3; done  # null devices under a GPU's name
  ((gpus == 0)) || echo "Name=gpu File=$dir/dev/nvidia[0-$((gpus - 1))]" >"$dir/gres.conf"
  echo "CgroupPlugin=cgroup/v1" >"$dir/cgroup.conf"  # needs nothing mounted as long as no plugin uses it
  echo "127.0.0.1 localhost" >"$dir/hosts"
  for name in "${!address[@]}"; do echo "$net.${address[$name]} $name" >>"$dir/hosts"; done
  { grep -v '^hosts:' /etc/nsswitch.conf || true; echo "hosts: files"; } >"$dir/nsswitch.conf"
}

boot() {  # HOST: its namespaces, held by a first process whose end ends everything in them
  local shell holder
  # shellcheck disable=SC2016  # expanded inside
  setsid unshare --net --mount --uts --ipc --pid --fork --mount-proc bash -c '
    hostname "$1"; mount --bind "$2/hosts" /etc/hosts; mount --bind "$2/nsswitch.conf" /etc/nsswitch.conf
    mount -t tmpfs tmpfs /dev/shm; mount -t sysfs sysfs /sys; ip link set lo up; : >"$2/$1.up"
    while :; do sleep 3600 & wait; done' init "$1" "$dir" </dev/null >"$dir/log/$1.init" 2>&1 &
  shell=$!
  until [[ -e $dir/$1.up ]]; do sleep 0.05; done
  holder=$(pgrep -P "$shell")
  echo "$holder" >"$dir/$1.pid"
}

wire() {  # INTERFACE NETWORK: a bridge of that name in the controller, and a link to it in every node
  local name bridge=(nsenter -t "$(cat "$dir/ctl.pid")" -n ip link)
  "${bridge[@]}" add "$1" type bridge forward_delay 0
  for name in "${nodes[@]}"; do
    "${bridge[@]}" add "$name-$1" type veth peer name "$1" netns "$(cat "$dir/$name.pid")"
    "${bridge[@]}" set "$name-$1" master "$1" up
  done
  for name in "${!address[@]}"; do
    nsenter -t "$(cat "$dir/$name.pid")" -n ip addr add "$2.${address[$name]}/24" dev "$1"
    nsenter -t "$(cat "$dir/$name.pid")" -n ip link set "$1" up
  done
}

start() {
  configure
  for name in "${!address[@]}"; do boot "$name"; done
  wire eth0 "$net"
  wire eth1 "$data_net"
  inside ctl munged --key-file="$dir/munge/key" --socket="$dir/munge/socket" --pid-file="$dir/munge/pid" \
    --log-file="$dir/log/munged.log" --seed-file="$dir/munge/seed"
  inside ctl slurmctld -f "$SLURM_CONF"
  for name in "${nodes[@]}"; do mkdir -p "$dir/spool/$name"; inside "$name" slurmd -f "$SLURM_CONF" -N "$name"; done
  until [[ $(inside ctl sinfo -h -o %T 2>/dev/null) == idle ]]; do sleep 0.1; done
}

stop() {
  for name in "${!address[@]}"; do
    [[ ! -e $dir/$name.pid ]] || kill -KILL "$(cat "$dir/$name.pid")" 2>/dev/null || true
    rm -f "$dir/$name.pid"
  done
}

case $command in
  start) trap '[[ $? == 0 ]] || stop' EXIT; start ;;
  stop) stop ;;
  run) inside ctl "$@" ;;
  at) inside "$@" ;;
  *) sed -n '2,/^set /p' "$0" >&2; exit 2 ;;
esac
