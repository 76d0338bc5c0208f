#!/usr/bin/env bash
# A real Slurm of one node on this machine, without systemd, for tests; needs root, slurm-wlm and munge.
#
#   bash tests/slurm/one_node.sh start FOLDER [CPUS]   # prints the slurm.conf to export as SLURM_CONF
#   bash tests/slurm/one_node.sh stop FOLDER
#
# Everything, the munge key and socket too, is in FOLDER; the system's own munge and Slurm are not touched. Credentials
# live for 5 s, not 120, because a job that goes back into the queue waits until they are over.
set -euo pipefail

stop() {
  echo "one_node.sh: $*" >&2
  exit 1
}

free_port() {
  python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

end() {
  local name pid
  for name in slurmd slurmctld munged; do
    [[ -f "$1/$name.pid" ]] || continue
    pid="$(<"$1/$name.pid")"
    kill "$pid" 2>/dev/null || true
    for _ in $(seq 100); do
      kill -0 "$pid" 2>/dev/null || break
      sleep 0.1
    done
    kill -9 "$pid" 2>/dev/null || true
  done
}

begin() {
  local folder="$1" cpus="$2" host memory
  [[ "$(id -u)" == 0 ]] || stop "only root can start a Slurm"
  for program in munged slurmctld slurmd sinfo; do
    command -v "$program" >/dev/null || stop "there is no $program: apt-get install slurm-wlm munge"
  done
  host="$(hostname -s)"
  memory=$(awk '/^MemTotal/ { print int($2 / 1024 * 0.9) }' /proc/meminfo)
  mkdir -p "$folder/state" "$folder/spool"
  chmod 755 "$folder"
  (umask 077 && head -c 1024 /dev/urandom >"$folder/munge.key")
  cat >"$folder/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$(free_port)
SlurmdPort=$(free_port)
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket,cred_expire=5
SlurmUser=root
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,batch_sched_delay=0
ReturnToService=2
KillWait=5
MinJobAge=600
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cpus RealMemory=$memory State=UNKNOWN
PartitionName=test Nodes=$host Default=YES MaxTime=INFINITE State=UP
CONF
  # --force: a folder below /tmp is less guarded than munge likes
  munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" --pid-file="$folder/munged.pid" \
    --log-file="$folder/munged.log" --seed-file="$folder/munge.seed"
  export SLURM_CONF="$folder/slurm.conf"
  slurmctld
  slurmd -N "$host" # a node may have fewer or more processors than the machine: it is told, not asked
  for _ in $(seq 150); do
    if [[ "$(sinfo --noheader --format=%T 2>/dev/null)" == idle ]]; then
      echo "$SLURM_CONF"
      return
    fi
    sleep 0.2
  done
  end "$folder"
  tail -n 5 "$folder"/*.log >&2
  stop "the node did not come up within 30 s; its logs are in $folder"
}

[[ $# -ge 2 ]] || stop "usage: one_node.sh start FOLDER [CPUS] | stop FOLDER"
folder="$(realpath -m -- "$2")"
case "$1" in
  start) begin "$folder" "${3:-$(nproc)}" ;;
  stop) end "$folder" ;;
  *) stop "$1: start or stop" ;;
esac
