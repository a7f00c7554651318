#!/usr/bin/env bash
# rehearse.sh FOLDER: shoal.sbatch on a real Slurm of two machines that are namespaces of this one (process ids, network,
# names, a disk each). `shoal demo` is submitted, told to stop while it works, requeued by the script, and finishes; a
# second job is cancelled and stays cancelled; a third is refused by shoal. Six minutes on two cores. Needs root and, of
# Debian, iproute2, munge, slurm-wlm and tini. SHOAL_VENV is the environment, as for shoal.sbatch. Nothing of the machine's
# own Slurm or Ray is touched.
set -euo pipefail

root=$(realpath "${1:?expected: rehearse.sh FOLDER, which is made and holds logs and results}")
sbatch=$(realpath "$(dirname "$0")/shoal.sbatch")
id=shoal$$
for program in ip munged nsenter slurmctld slurmd tini unshare; do
    command -v "$program" >/dev/null || { echo "no $program; apt install iproute2 munge slurm-wlm tini" >&2; exit 2; }
done
mkdir -p "$root"/{share,log,state,munge,spool-n1,spool-n2,disk-n1,disk-n2}

started=()
# shellcheck disable=SC2317 # called by the trap
leave() {
    set +e
    [ ${#started[@]} = 0 ] || kill -KILL "${started[@]}" 2>/dev/null # with its first process a namespace ends
    wait
    rm -rf "/run/$id"
    ip netns delete "$id-n1" 2>/dev/null
    ip netns delete "$id-n2" 2>/dev/null
}
trap leave EXIT

# Two machines that see each other and nobody else.
for i in 1 2; do
    ip netns add "$id-n$i"
    ip -n "$id-n$i" link set lo up
done
ip link add v1 netns "$id-n1" type veth peer name v2 netns "$id-n2"
for i in 1 2; do
    ip -n "$id-n$i" address add "10.77.0.$i/24" dev "v$i"
    ip -n "$id-n$i" link set "v$i" up
done
printf '127.0.0.1 localhost\n10.77.0.1 n1\n10.77.0.2 n2\n' >"$root/hosts"

# munge: who asks is who they say.
head -c 1024 /dev/urandom >"$root/munge/key"
chmod 400 "$root/munge/key"
chmod 700 "$root/munge"
chown -R munge: "$root/munge"
socket=/run/$id/munge
mkdir --mode=755 "/run/$id"
chown munge: "/run/$id"
setsid setpriv --reuid munge --regid munge --init-groups munged --foreground --force --key-file="$root/munge/key" \
    --socket="$socket" --pid-file="$root/munge/pid" --log-file="$root/munge/log" --seed-file="$root/munge/seed" \
    2>"$root/log/munged" &
started+=($!)

cat >"$root/slurm.conf" <<TEXT
ClusterName=$id
SlurmctldHost=n1(10.77.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$socket
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
SlurmctldPidFile=$root/slurmctld.pid
SlurmdPidFile=$root/slurmd-%n.pid
StateSaveLocation=$root/state
SlurmdSpoolDir=$root/spool-%n
SlurmctldLogFile=$root/log/slurmctld
SlurmdLogFile=$root/log/slurmd-%n
SlurmdParameters=config_overrides
NodeName=n1 NodeAddr=10.77.0.1 CPUs=2 RealMemory=4000 State=UNKNOWN
NodeName=n2 NodeAddr=10.77.0.2 CPUs=2 RealMemory=4000 State=UNKNOWN
PartitionName=main Nodes=n1,n2 Default=YES State=UP
TEXT

cat >"$root/machine.sh" <<'TEXT'
set -eu
root=$1 disk=$2 name=$3
hostname "$name"
mount --bind "$root/hosts" /etc/hosts
mount --bind "$root/disk-$name" "$disk"
[ "$name" != n1 ] || slurmctld -f "$root/slurm.conf"
exec slurmd -D -N "$name" -f "$root/slurm.conf"
TEXT
export SLURM_CONF=$root/slurm.conf SHOAL_TMPDIR=/run/$id/disk
mkdir "$SHOAL_TMPDIR"
for name in n1 n2; do
    setsid nsenter --net="/run/netns/$id-$name" unshare --pid --mount --uts --fork --kill-child --mount-proc \
        tini -- bash "$root/machine.sh" "$root" "$SHOAL_TMPDIR" "$name" >"$root/log/$name" 2>&1 </dev/null &
    started+=($!)
done

on_n1() { nsenter --target "$(pgrep --parent "${started[1]}")" --all --wd="$root/share" "$@"; }
state() { on_n1 scontrol show job "$1" | grep -oE "(JobState|Restarts|ExitCode)=[^ ]*" | paste -sd ' '; }
until_() { # SECONDS WHAT COMMAND...: waits for the command to succeed
    for _ in $(seq "$1"); do
        if "${@:3}" >/dev/null 2>&1; then
            echo "$(date +%T) $2"
            return
        fi
        sleep 1
    done
    echo "not within $1 s: $2" >&2
    tail -n 30 "$root"/share/*.log "$root/log/slurmctld" >&2
    exit 1
}
is() { [[ "$(state "$1")" == *"$2"* ]]; }

until_ 60 "two machines are up" on_n1 srun --nodes=2 hostname
on_n1 sbatch --job-name=stopped "$sbatch" demo --output "$root/share/demo" # job 2
log=$root/share/shoal-2.log
until_ 600 "it embeds" grep -q '"step": "extract"' "$log"
on_n1 scancel --batch --signal=TERM 2
until_ 120 "it was interrupted" grep -q '"event": "interrupted"' "$log"
until_ 120 "it was requeued" is 2 "JobState=PENDING Restarts=1"
[ ! -e "$root/share/.shoal-2" ] || { echo "the token is still there" >&2; exit 1; }
on_n1 scontrol update JobId=2 StartTime=now # Slurm would let two minutes pass
until_ 1200 "it finished" is 2 "JobState=COMPLETED Restarts=1 ExitCode=0:0"
ls "$root"/disk-n1/shoal-2 "$root"/disk-n2/shoal-2 2>/dev/null && { echo "Ray's files are still there" >&2; exit 1; }

on_n1 sbatch --job-name=cancelled --nodes=1 "$sbatch" demo --output "$root/share/cancelled" # job 3
until_ 600 "the second works, on one machine" grep -q '"event": "progress"' "$root/share/shoal-3.log"
on_n1 scancel 3
until_ 120 "it is cancelled, and was not requeued" is 3 "JobState=CANCELLED Restarts=0"

on_n1 sbatch --nodes=1 "$sbatch" run "$root/nothing" --output "$root/share/refused" # job 4
until_ 600 "shoal's refusal is the job's exit code" is 4 "JobState=FAILED Restarts=0 ExitCode=2:0"
echo "rehearsed: $(state 2)"
