#!/bin/bash
# Proves on a Slurm of its own, on this machine, that a job which is told to end saves, leaves, is queued again and ends with the
# bytes of an undisturbed run. Not part of CI: it wants root, `apt-get install slurm-wlm munge`, and an MPI (scripts/mpi.sh).
# Slurm, its keys and the runs lie in a temporary folder; nothing of this machine's own Slurm is touched.
#
#   scripts/slurm.sh [RANKS [STEPS]]
set -euo pipefail
cd "$(dirname "$0")/.."
ranks=${1:-4} steps=${2:-3000}
for program in munged slurmctld slurmd sbatch mpirun; do
    PATH="$PATH:/usr/sbin" command -v "$program" >/dev/null || { echo "$program is missing: apt-get install slurm-wlm munge openmpi-bin"; exit 1; }
done
[ "$(id -u)" = 0 ] || { echo "slurmd runs jobs for others, which takes root"; exit 1; }
export PATH="$PATH:/usr/sbin" OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
cargo build --release --locked --features mpi --bin danlu
danlu=$PWD/target/release/danlu

place=$(mktemp -d /tmp/danlu-slurm.XXXXXX)
chmod 755 "$place"
started=()
finish() {
    code=$?
    for pid in "${started[@]}"; do kill "$pid" 2>/dev/null || true; done
    [ "$code" = 0 ] && rm -rf "$place" || echo "failed; what was written is in $place"
}
trap finish EXIT

# Munge says who is who.
mkdir -m 700 "$place/munge"
dd if=/dev/urandom of="$place/munge/key" bs=1 count=1024 status=none
chmod 600 "$place/munge/key"
munged --foreground --force --key-file="$place/munge/key" --socket="$place/munge/socket" --pid-file="$place/munge/pid" \
    --log-file="$place/munge/log" --seed-file="$place/munge/seed" >"$place/munged.log" 2>&1 &
started+=($!)

name=$(hostname -s) base=$((20000 + RANDOM % 20000))
mkdir "$place/state" "$place/spool"
cat >"$place/slurm.conf" <<CONF
ClusterName=one
SlurmctldHost=$name
SlurmctldPort=$base
SlurmdPort=$((base + 1))
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$place/munge/socket
StateSaveLocation=$place/state
SlurmdSpoolDir=$place/spool
SlurmctldPidFile=$place/slurmctld.pid
SlurmdPidFile=$place/slurmd.pid
SlurmctldLogFile=$place/slurmctld.log
SlurmdLogFile=$place/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
NodeName=$name CPUs=$((2 * ranks)) State=UNKNOWN
PartitionName=all Nodes=$name Default=YES MaxTime=INFINITE State=UP
CONF
export SLURM_CONF="$place/slurm.conf"
slurmctld -D -f "$SLURM_CONF" >/dev/null 2>&1 & started+=($!)
slurmd -D -f "$SLURM_CONF" -N "$name" >/dev/null 2>&1 & started+=($!)
for _ in $(seq 60); do
    [ "$(sinfo -h -o %t 2>/dev/null)" = idle ] && break
    sleep 1
done
[ "$(sinfo -h -o %t)" = idle ] || { echo "Slurm does not start:"; tail -n 20 "$place"/*.log; exit 1; }

run="train --config story-1m --batch $ranks --seq 32 --checkpoint-every 20 --steps $steps --quiet"
cd "$place"
"$danlu" $run --mesh "data=$ranks" --out calm
"$danlu" launch --with slurm --ranks "$ranks" --ranks-per-node "$ranks" --time 60 -- $run --out run
job=$(squeue -h -o %A)
echo "job $job is submitted"

state() { scontrol show job "$job" --oneliner 2>/dev/null | sed -n 's/.*JobState=\([A-Z_]*\).*/\1/p'; }
# Waits for a state of the job; one that has ended comes to no other, and of one that is over for a while Slurm says nothing.
becomes() {
    unknown=0
    until now=$(state) && [ "$now" = "$1" ]; do
        [ -n "$now" ] && unknown=0 || unknown=$((unknown + 1))
        [ "$unknown" -lt 10 ] || now="no job that Slurm knows"
        case "$now" in
            COMPLETED | FAILED | CANCELLED | TIMEOUT | NODE_FAIL | OUT_OF_MEMORY | BOOT_FAIL | DEADLINE | PREEMPTED | "no job"*)
                echo "the job ended as $now, and was to become $1; its last words:"
                tail -n 20 run/slurm-*.log
                exit 1 ;;
        esac
        sleep 1
    done
}
lines() { { cat run/metrics.jsonl 2>/dev/null || true; } | wc -l; }

# What Slurm sends ahead of a time limit, here sent twice by hand, each time once the ranks have done some steps.
for turn in 1 2; do
    becomes RUNNING
    before=$(lines)
    until [ "$(lines)" -gt "$((before + 20))" ]; do becomes RUNNING; sleep 1; done
    scancel --batch --signal=TERM "$job"
    becomes PENDING
    echo "turn $turn: step $(ls run/checkpoints | sed -n 's/^step-\([0-9]*\)$/\1/p' | sort -n | tail -n 1) is saved, and the job is $(squeue -h -j "$job" -o '%T (%r)')"
    # A requeued job waits for two minutes, which is of no interest here; but what its last turn has left, such as the socket by
    # which ranks learn of each other, must be gone.
    for _ in $(seq 60); do compgen -G "$place/spool/*pmix*" >/dev/null || [ "$(sinfo -h -o %t)" != idle ] || break; sleep 1; done
    for _ in $(seq 30); do scontrol update "JobId=$job" StartTime=now 2>/dev/null && break || sleep 1; done
done
becomes COMPLETED
cmp calm/model.safetensors run/model.safetensors
echo "the job was told to end and queued again twice, and ended with the bytes of an undisturbed run"
