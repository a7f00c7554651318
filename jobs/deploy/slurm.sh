# shellcheck shell=bash disable=SC2154
# The parts of infra/slurm/shoal.sbatch that a rendered script has, word for word; what it is to run stands between them.
if [ -n "${SHOAL_VENV:-}" ]; then
    PATH=$SHOAL_VENV/bin:$PATH
fi
for program in ray shoal; do
    if ! command -v "$program" >/dev/null; then
        echo "no $program on ${SLURMD_NODENAME:-this machine}; give the environment that has it: SHOAL_VENV=/shared/venv sbatch ..." >&2
        exit 2
    fi
done

folder=$SLURM_SUBMIT_DIR/.shoal-$SLURM_JOB_ID # of this attempt: the cluster's token, and the process to be told to stop
trap 'rm -rf "$folder"' EXIT
rm -rf "$folder"
mkdir --mode=700 "$folder"
od -An -v -tx1 -N32 /dev/urandom | tr -d ' \n' >"$folder/token"
#@
# This script runs on the first machine, which is Ray's head. A name that resolves to loopback is of no use to the others.
head=$(getent ahostsv4 "${SLURMD_NODENAME:-$(hostname)}" | awk '$1 !~ /^127\./ { print $1; exit }') || true
head=${head:-$(hostname -I | awk '{ print $1 }')}

export RAY_ADDRESS=$head:6379 RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$folder/token RAY_USAGE_STATS_ENABLED=0
export RAY_TMPDIR=${SHOAL_TMPDIR:-/tmp}/shoal-$SLURM_JOB_ID # on each machine's own disk; short, for paths of sockets
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300
# The head goes first at the end: the others need not wait a minute for it to come back, nor hand over their work to it.
export RAY_gcs_rpc_server_reconnect_timeout_s=20 RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0
export SHOAL_LOG=${SHOAL_LOG:-json}

signalled='' stopped=''
# shellcheck disable=SC2317 # called by the trap
stop() {
    signalled=yes stopped=yes
    echo "told to stop; shoal finishes what it is writing" >&2
    # Only the command: a signal to the whole step would take Ray away from under it.
    kill -TERM "$(cat "$folder/pid" 2>/dev/null || echo "$step")" 2>/dev/null || true
}
trap stop TERM

# shellcheck disable=SC2016 # expanded on each machine, whose CPUs and GPUs may differ
on_each='
    # A job that is cancelled: symmetric-run dies of the signal, and Ray would stay where Slurm does not track by cgroup.
    trap "ray stop --force >/dev/null 2>&1; rm -rf \"$RAY_TMPDIR\"" EXIT
    trap "exit 143" TERM
    mkdir -p --mode=700 "$RAY_TMPDIR"
    for _ in 1 2 3; do
        ray symmetric-run --address "$RAY_ADDRESS" --min-nodes "$SLURM_JOB_NUM_NODES" \
            --num-cpus "$SLURM_CPUS_ON_NODE" --num-gpus "${SLURM_GPUS_ON_NODE:-0}" -- "$@" || exit
        # It ends well even where Ray did not start, as happens on machines that are slow to load it.
        [ ! -e "$0" ] || exit 0
        echo "Ray did not start on $SLURMD_NODENAME" >&2
    done
    exit 1'
# shellcheck disable=SC2016
on_head='echo $$ >"$0"; exec shoal "$@"'
# Not killed on a bad exit: the others end by themselves without their head, and the exit code is shoal's.
srun --kill-on-bad-exit=0 --cpu-bind=none bash -c "$on_each" "$folder/pid" bash -c "$on_head" "$folder/pid" "$@" &
step=$!

code=0
while :; do # a signal interrupts `wait`; what counts is how the step ended
    signalled=''
    wait "$step" && code=0 || code=$?
    [ -n "$signalled" ] || break
done

# A job that is being cancelled or requeued by others is no longer RUNNING.
if [ -n "$stopped" ] && [ "$code" != 0 ] && [ "$(squeue --noheader --jobs "$SLURM_JOB_ID" --format %T)" = RUNNING ]; then
    if [ "${SLURM_RESTART_COUNT:-0}" -lt "$most_restarts" ]; then
        echo "requeued; the next attempt continues" >&2
        scontrol requeue "$SLURM_JOB_ID"
    else
        echo "not requeued: this was restart $most_restarts; look whether the run gets on, then submit it again" >&2
    fi
fi
exit "$code"
