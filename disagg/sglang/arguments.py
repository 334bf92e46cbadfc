"""The complete arguments and environment of one SGLang engine.

Way:   plan -> [engine_arguments, engine_environment] -> HostSpec -> engine host -> sglang.Engine(**arguments)
In:    what the pool says; device, addresses and deadlines the controller decided
Out:   plain dicts. The pool's arguments override the device's defaults; what the orchestrator owns is set last
       (a pool that names such an argument was refused by disagg/config/rules.py)
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from disagg.role_table import ROLES
from disagg.roles import Role


class Ports(NamedTuple):
    """One incarnation's port numbers. The next incarnation gets others; a block is reused after all others
    (PortBlocks)."""

    rendezvous: int  # with DP attention SGLang takes the next six, too, and the one 13 above
    bootstrap: int
    server: int  # nobody listens here
    nccl: int
    plane: int

    @classmethod
    def from_first(cls, first: int) -> Ports:
        """A block of PORT_BLOCK numbers."""
        return cls(first, first + 7, first + 8, first + 9, first + 10)


PORT_BLOCK = 14  # SGLang's DP_ATTENTION_HANDSHAKE_PORT_DELTA is 13


class EngineDeadlines(Protocol):
    @property
    def first_token_s(self) -> float: ...


# Torch operators alone, and little memory. KV in float32 is zeroed at start: 16384 tokens of SmolLM2 are 0.7 GB.
CPU_DEFAULTS: dict[str, Any] = {
    "dtype": "float32",
    "attention_backend": "torch_native",
    "sampling_backend": "pytorch",
    "disable_cuda_graph": True,
    "disable_overlap_schedule": True,
    "mem_fraction_static": 0.7,  # of what is free after neighbours loaded theirs; max_total_tokens is the real bound
    "max_total_tokens": 16384,
    "max_running_requests": 16,
    "chunked_prefill_size": 256,
    "sleep_on_idle": True,  # an idle scheduler would take a whole core
}
EVERYWHERE_DEFAULTS: dict[str, Any] = {
    "log_level": "info",
    "grammar_backend": "xgrammar",
    "constrained_json_disable_any_whitespace": True,  # small models would put out blanks until their tokens are used up
}
LORA_DEFAULTS: dict[str, dict[str, Any]] = {"cpu": {"lora_backend": "torch_native"}}  # others are Triton's
DEVICE_DEFAULTS = {"cpu": EVERYWHERE_DEFAULTS | CPU_DEFAULTS, "cuda": EVERYWHERE_DEFAULTS}


def engine_arguments(
    role: Role, pool_engine: Mapping[str, Any], *, device: str, model_path: str, host: str, ports: Ports
) -> dict[str, Any]:
    """Keyword arguments of `sglang.Engine`. `device` is cpu or cuda; `host` what its internal ports bind to."""
    return {
        **DEVICE_DEFAULTS[device],
        **ROLES[role].arguments(pool_engine, device=device, bootstrap_port=ports.bootstrap),
        "model_path": model_path,
        "device": device,
        "host": host,
        "port": ports.server,
        "nccl_port": ports.nccl,
        # Always set: SGLang's own choice for DP attention is 233 above `port`, which may be another engine's.
        "dist_init_addr": f"{host}:{ports.rendezvous}",
        "skip_server_warmup": True,  # the controller warms every rank itself, through a real transfer
        "skip_tokenizer_init": True,  # token ids in, token ids out
        "incremental_streaming_output": True,  # a chunk holds the new ids only
    }


def member_arguments(first: Mapping[str, Any], *, member: int, members: int, host: str, ports: Ports) -> dict[str, Any]:
    """The arguments of a further host of an engine over several nodes; `first` are those of its first host."""
    own = {"host": host, "port": ports.server, "nccl_port": ports.nccl} if member else {}
    return {**first, "nnodes": members, "node_rank": member, **own}


def engine_environment(
    role: Role,
    *,
    device: str,
    deadlines: EngineDeadlines,
    ranks: int = 1,
    cpu_count: int | None = None,
    pace_ms: float | None = None,
) -> dict[str, str]:
    """What must stand in the environment before SGLang is imported.

    `ranks` is tp_size * pp_size; `cpu_count` is the engine's node's (default: this machine's); `pace_ms` its pool's.
    """
    environment: dict[str, str] = {
        "HF_HUB_OFFLINE": "1",  # the model is a folder by now; a look at the hub would only wait
        "TOKENIZERS_PARALLELISM": "false",
        # A host whose scheduler died would spend 5 s, and 60 s more beside a living rank, on dumps before it follows.
        "SGLANG_PYSPY_DUMP_BEFORE_CRASH": "0",
        "SGLANG_CUDA_COREDUMP_BEFORE_CRASH": "0",
    }
    environment |= ROLES[role].environment(first_token_s=deadlines.first_token_s, pace_ms=pace_ms)
    if device == "cpu":
        environment |= {
            "SGLANG_USE_CPU_ENGINE": "1",
            "OMP_NUM_THREADS": "1",
            "SGLANG_SET_CPU_AFFINITY": "0",
            "TORCHDYNAMO_DISABLE": "1",  # else the first request compiles for 10 to 15 s
        }
        if ranks > 1:  # one entry a rank, else SGLang wants a NUMA node for each
            cores = f"0-{(cpu_count or os.cpu_count() or 1) - 1}"
            environment["SGLANG_CPU_OMP_THREADS_BIND"] = "|".join([cores] * ranks)
    return environment


def node_environment(*, device: str, deadlines: EngineDeadlines) -> dict[str, str]:
    """Of a node's agent, where engines of all roles come from: what any of them needs."""
    environment: dict[str, str] = {}
    for role in ROLES:
        environment |= engine_environment(role, device=device, deadlines=deadlines)
    return environment
