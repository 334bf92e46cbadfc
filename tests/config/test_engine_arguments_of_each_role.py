"""Golden: the whole of what an engine is given, by role and device."""

import importlib.util
import re
from pathlib import Path

import pytest

from disagg.config.schema import Deadlines
from disagg.roles import Role
from disagg.sglang.arguments import PORT_BLOCK, Ports, engine_arguments, engine_environment
from disagg.sglang.owned_arguments import OWNED_ARGUMENTS
from disagg.sglang.releases import installed_release

PORTS = Ports.from_first(30000)

ALWAYS = {
    "model_path": "/m",
    "host": "10.0.0.1",
    "dist_init_addr": "10.0.0.1:30000",
    "port": 30008,
    "nccl_port": 30009,
    "skip_tokenizer_init": True,
    "incremental_streaming_output": True,
    "grammar_backend": "xgrammar",
    "constrained_json_disable_any_whitespace": True,
    "skip_server_warmup": True,
    "log_level": "info",
}
ON_CPU = {
    "device": "cpu",
    "dtype": "float32",
    "attention_backend": "torch_native",
    "sampling_backend": "pytorch",
    "disable_cuda_graph": True,
    "disable_overlap_schedule": True,
    "mem_fraction_static": 0.7,
    "max_total_tokens": 16384,
    "max_running_requests": 16,
    "chunked_prefill_size": 256,
    "sleep_on_idle": True,
}
ON_CUDA = {"device": "cuda"}
OVER_NIXL = {"disaggregation_transfer_backend": "nixl", "disaggregation_bootstrap_port": 30007}
PREFILL = OVER_NIXL | {"disaggregation_mode": "prefill"}
DECODE = OVER_NIXL | {"disaggregation_mode": "decode"}
ON_HOST = {"disaggregation_decode_retraction_backup": "cpu_tensor"}


@pytest.mark.parametrize(
    ("role", "device", "golden"),
    [
        (Role.PREFILL, "cpu", ALWAYS | ON_CPU | PREFILL),
        (Role.DECODE, "cpu", ALWAYS | ON_CPU | DECODE | ON_HOST),
        (Role.AGGREGATED, "cpu", ALWAYS | ON_CPU),
        (Role.PREFILL, "cuda", ALWAYS | ON_CUDA | PREFILL),
        (Role.DECODE, "cuda", ALWAYS | ON_CUDA | DECODE),
        (Role.AGGREGATED, "cuda", ALWAYS | ON_CUDA),
    ],
)
def test_arguments(role: Role, device: str, golden: dict[str, object]) -> None:
    arguments = engine_arguments(role, {}, device=device, model_path="/m", host="10.0.0.1", ports=PORTS)
    assert arguments == golden
    if sglang := installed_release():
        assert arguments.keys() <= sglang.arguments.keys()


def test_a_pool_overrides_the_devices_defaults_and_never_what_is_ours() -> None:
    pool = {"dtype": "bfloat16", "page_size": 16, "disaggregation_decode_retraction_backup": "host_pool"}
    theirs = dict.fromkeys(OWNED_ARGUMENTS, "theirs")
    arguments = engine_arguments(Role.DECODE, pool | theirs, device="cpu", model_path="/m", host="h", ports=PORTS)
    assert pool.items() <= arguments.items()
    ours = engine_arguments(Role.DECODE, {}, device="cpu", model_path="/m", host="h", ports=PORTS)
    assert {name: arguments[name] for name in OWNED_ARGUMENTS if name in ours} == {
        name: ours[name] for name in OWNED_ARGUMENTS if name in ours
    }


EVERYWHERE = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "SGLANG_PYSPY_DUMP_BEFORE_CRASH": "0",
    "SGLANG_CUDA_COREDUMP_BEFORE_CRASH": "0",
}
TRANSFERS = {
    "SGLANG_DISAGGREGATION_BOOTSTRAP_TIMEOUT": "35",
    "SGLANG_DISAGGREGATION_WAITING_TIMEOUT": "35",
    "SGLANG_DISAGGREGATION_HEARTBEAT_INTERVAL": "2",
    "SGLANG_DISAGGREGATION_HEARTBEAT_MAX_FAILURE": "1",
    "UCX_PROTO_INFO": "y",
}
CORES = {
    "SGLANG_USE_CPU_ENGINE": "1",
    "OMP_NUM_THREADS": "1",
    "SGLANG_SET_CPU_AFFINITY": "0",
    "TORCHDYNAMO_DISABLE": "1",
}


@pytest.mark.parametrize(
    ("role", "device", "golden"),
    [
        (Role.PREFILL, "cpu", EVERYWHERE | TRANSFERS | CORES),
        (Role.DECODE, "cpu", EVERYWHERE | TRANSFERS | CORES),
        (Role.AGGREGATED, "cpu", EVERYWHERE | CORES),
        (Role.DECODE, "cuda", EVERYWHERE | TRANSFERS),
        (Role.AGGREGATED, "cuda", EVERYWHERE),
    ],
)
def test_environment(role: Role, device: str, golden: dict[str, str]) -> None:
    assert engine_environment(role, device=device, deadlines=Deadlines(first_token_s=30.5)) == golden


def test_ranks_on_cores_share_them() -> None:
    environment = engine_environment(Role.PREFILL, device="cpu", deadlines=Deadlines(), ranks=2, cpu_count=4)
    assert environment["SGLANG_CPU_OMP_THREADS_BIND"] == "0-3|0-3"


def test_a_block_holds_every_port_that_sglang_takes() -> None:
    spec = importlib.util.find_spec("sglang")
    assert spec is not None
    assert spec.submodule_search_locations
    source = Path(spec.submodule_search_locations[0], "srt/server_args.py").read_text()
    found = re.search(r"^DP_ATTENTION_HANDSHAKE_PORT_DELTA = (\d+)$", source, re.MULTILINE)
    assert found
    assert set(Ports.from_first(0)) < set(range(PORT_BLOCK))
    assert int(found[1]) < PORT_BLOCK
    assert int(found[1]) not in Ports.from_first(0)
