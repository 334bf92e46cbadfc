#!/usr/bin/env bash
# Prefill and decode engines over the nodes of this job. Made by `disagg deploy slurm` from <<FILE>>: change that, and
# make this anew.
#
#   sbatch THIS                           the endpoint is the first node's, at the frontend.port of the configuration
#   scancel --batch --signal=TERM JOB     ends it in order: streams end, engines stop, Ray stops
#   scancel JOB                           ends all of it at once
# <<DIRECTIVES>>

# Functions run on other nodes and in traps, where shellcheck does not see them called; what --setup reads is not here.
# shellcheck disable=SC2317,SC2329,SC1091
set -euo pipefail
umask 077

# <<SETUP>>

interface=<<INTERFACE>>
ray_port=6379
folder=/tmp/disagg-$SLURM_JOB_ID # on each node, for all that the job leaves there; short: sockets lie in it
ray_start=(--disable-usage-stats --log-color=false --temp-dir "$folder"<<RAY_START>>)

say() { echo "$(date +%T) $(hostname -s): $*" >&2; }

# The address under which the other nodes reach this one: of the interface that was named, else the one SLURM uses.
own_address() {
    local address
    if [[ -n $interface ]]; then
        address=$(ip -4 -o addr show dev "$interface" | awk '{ sub("/.*", "", $4); print $4; exit }')
    else
        address=$(scontrol show node "$SLURMD_NODENAME" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')
        # A name may mean 127.0.1.1 on the node that bears it.
        if [[ ! $address =~ ^[0-9.]+$ ]]; then
            address=$(getent ahostsv4 "$address" | awk '$1 !~ /^127\./ { print $1; exit }')
            address=${address:-$(hostname -I | awk '{ print $1 }')}
        fi
    fi
    [[ -n $address ]] || { say "this node has no address${interface:+ on $interface}"; return 1; }
    echo "$address"
}

# Runs Ray on this node until it is told to stop; on any node but the first it comes again when it dies.
node() {
    local address ray pause=5
    address=$(own_address)
    mkdir -p "$folder"
    [[ -O $folder ]] || { say "$folder is somebody else's"; return 1; }
    export TMPDIR=$folder
    ulimit -l unlimited 2>/dev/null || say "locked memory stays limited to $(ulimit -l) KiB: RDMA may not register KV"
    ulimit -n "$(ulimit -Hn)"
    unset RAY_ADDRESS # `ray start` is told in words
    export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0 # what serves has ended before; SLURM would kill it in its sleep
    local cpus=${SLURM_CPUS_ON_NODE:-1}
    local amounts=(--num-cpus "${cpus%%(*}")
    [[ -z ${SLURM_GPUS_ON_NODE:-} ]] || amounts+=(--num-gpus "$SLURM_GPUS_ON_NODE")
    trap 'kill "$ray" 2>/dev/null; wait "$ray"; rm -rf "$folder" || rm -rf "$folder"; exit 0' TERM INT
    while true; do
        ray start "$@" --node-ip-address "$address" "${amounts[@]}" "${ray_start[@]}" --block &
        ray=$!
        wait "$ray" || say "ray start has ended with $?"
        [[ $1 != --head ]] || return 1
        sleep "$pause" &
        wait $!
    done
}

# COUNT, --nodelist or --exclude, then what `ray start` is told. Becomes srun, so that its pid is srun's.
on_nodes() {
    local count=$1 place=$2
    shift 2
    exec srun --nodes="$count" --ntasks="$count" --ntasks-per-node=1 "$place" --overlap --cpu-bind=none --mem=0 --no-kill \
        --kill-on-bad-exit=0 --unbuffered bash -c "$(declare -p interface folder ray_start)
        $(declare -f say own_address node)
        node $(printf '%q ' "$@")"
}

mkdir "$folder"
export TMPDIR=$folder
steps=()
serving=()
# Once, whatever ends this script: first what serves, then Ray, then what lies on this node's disk.
clean_up() {
    local status=$?
    trap '' TERM INT
    for pid in "${serving[@]}"; do
        kill "$pid" 2>/dev/null || true
        wait "$pid" || true
    done
    if ((${#steps[@]})); then # a signal to srun would kill what it runs; this one reaches all steps, and not this script
        scancel --signal=TERM "$SLURM_JOB_ID" || true
    fi
    for pid in "${steps[@]}"; do
        timeout 20 tail --pid="$pid" -s 0.1 -f /dev/null || kill "$pid" || true
        wait "$pid" || true
    done
    rm -rf "$folder"
    exit "$status"
}
trap clean_up EXIT
stopping=0
# What serves ends in order, and then this script with it.
trap 'stopping=1; kill "${serving[@]}" 2>/dev/null || exit 143' TERM INT

cat >"$folder/config.yaml" <<'END_OF_DISAGG_CONFIG'
<<CONFIG>>
END_OF_DISAGG_CONFIG

# Nobody joins without it. The environment hands it on; the file is for you, on this node: RAY_AUTH_TOKEN_PATH.
RAY_AUTH_TOKEN=$(od -An -vN32 -tx1 /dev/urandom | tr -d ' \n')
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN
echo "$RAY_AUTH_TOKEN" >"$folder/ray-auth-token"

head_name=$SLURMD_NODENAME # a batch script runs on the first node
head_address=$(own_address)
export RAY_ADDRESS=$head_address:$ray_port
say "job $SLURM_JOB_ID on $SLURM_JOB_NODELIST, Ray's head at $RAY_ADDRESS, files in $folder"

on_nodes 1 "--nodelist=$head_name" --head --port "$ray_port" --include-dashboard=false &
steps+=($!)
if ((SLURM_JOB_NUM_NODES > 1)); then
    on_nodes $((SLURM_JOB_NUM_NODES - 1)) "--exclude=$head_name" --address "$RAY_ADDRESS" &
    steps+=($!)
fi

python3 -m disagg.deploy.wait_for_nodes "$SLURM_JOB_NUM_NODES" 300 &
serving=($!)
wait -n "${serving[0]}" "${steps[0]}" || { say "Ray is not up on all nodes"; exit 1; }

<<SERVE>> &
serving=($!)
status=0
wait "${serving[0]}" || status=$?
if ((stopping)); then # the signal ended the wait
    status=0
    wait "${serving[0]}" || status=$?
fi
say "disagg serve has ended with $status"
exit "$status"
