#!/bin/sh
# start.sh FOLDER CONTROLLER_PORT NODE_PORT: a Slurm of one node with two GPUs, which are device files of no device.
# Jobs of its partition `urgent` preempt those of `all`, which go back into the queue. It listens on 127.0.0.1 alone, has no accounting, keeps everything in FOLDER, and ends with this script.
set -e
folder=$1
[ "$(id -u)" = 0 ] || { echo "a Slurm of its own needs root"; exit 1; }
mkdir -p "$folder/state" "$folder/spool"
cd "$folder"
for gpu in 0 1; do
    mknod "gpu$gpu" c 240 "$gpu" || { echo "device files can't be made in $folder"; exit 1; }
done
cat > gres.conf <<END
NodeName=localhost Name=gpu File=$folder/gpu[0-1]
END
cat > slurm.conf <<END
ClusterName=qtarget
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=$2
SlurmdPort=$3
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,bf_interval=2
AccountingStorageType=accounting_storage/none
SlurmdParameters=config_overrides
ReturnToService=2
GresTypes=gpu
NodeName=localhost NodeAddr=127.0.0.1 CPUs=4 Gres=gpu:2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=all Nodes=localhost Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=urgent Nodes=localhost MaxTime=INFINITE State=UP PriorityTier=2
END
head -c 1024 /dev/urandom > munge.key
chmod 600 munge.key
trap 'SLURM_CONF=$folder/slurm.conf timeout 5 scancel --user=root 2>/dev/null; kill $munged $slurmctld $slurmd 2>/dev/null; wait' EXIT
trap 'exit 0' TERM INT
munged --foreground --force --socket="$folder/munge.socket" --key-file="$folder/munge.key" --pid-file="$folder/munged.pid" \
    --seed-file="$folder/munged.seed" --log-file="$folder/munged.log" --num-threads=2 > munged.out 2>&1 &
munged=$!
while [ ! -S munge.socket ]; do kill -0 $munged; sleep 0.1; done
slurmctld -D -f "$folder/slurm.conf" > slurmctld.log 2>&1 &
slurmctld=$!
slurmd -D -N localhost -f "$folder/slurm.conf" > slurmd.log 2>&1 &
slurmd=$!
wait
