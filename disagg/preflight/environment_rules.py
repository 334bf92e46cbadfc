"""Variables under a pool's `env` that make failures silent, slow or later.

Way:   Subject -> [these rules] -> Problems
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from disagg.errors import Problem
from disagg.preflight.rule import pool_rule, rule
from disagg.preflight.subject import PoolView, Subject
from disagg.surroundings import PROXIES, RANKS

HEARTBEAT_INTERVAL = "SGLANG_DISAGGREGATION_HEARTBEAT_INTERVAL"
HEARTBEAT_MISSES = "SGLANG_DISAGGREGATION_HEARTBEAT_MAX_FAILURE"
OUR_INTERVAL_S, OUR_MISSES = 2.0, 1.0  # transfer/disaggregation.py
SILENCE_S_MAX = 60.0
DEFERRED_RELEASE = "SGLANG_DISAGGREGATION_DEFERRED_DECODE_KV_RELEASE"
ALLOCATORS = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
# UCX: what a list of transports must hold for KV to go faster than TCP. `^` in front of a list excludes instead.
FAST_TRANSPORTS = re.compile(
    r"\b(all|ib|rc|rc_\w+|rc_x|ud|ud_\w+|dc|dc_\w+|dc_x|cuda\w*|shm|sm|posix|sysv|cma|xpmem|knem)\b"
)


@rule("sglang #7227, #10365, #16903", "leave it out: disagg sets 2 s and one miss")
def _heartbeat(subject: Subject) -> Iterator[Problem]:
    """failure detection is off: a benchmark's setting. When a prefill engine dies, requests hang for as long"""
    for pool in subject.split:
        interval_s = _number(pool.env.get(HEARTBEAT_INTERVAL), OUR_INTERVAL_S)
        misses = _number(pool.env.get(HEARTBEAT_MISSES), OUR_MISSES)
        if interval_s * misses > SILENCE_S_MAX:
            name = HEARTBEAT_MISSES if HEARTBEAT_MISSES in pool.env else HEARTBEAT_INTERVAL
            what = f"lets a prefill engine be silent for {interval_s * misses:g} s before decode takes it for dead"
            yield Problem(f"{pool.path}.env.{name}", what)


def _number(text: str | None, default: float) -> float:
    try:
        return default if text is None else float(text)
    except ValueError:
        return default


@rule("sglang #24527, #32564, #35049", "leave it out")
def _deferred_release(subject: Subject) -> Iterator[Problem]:
    """an aborted request's pages are given away while the prefill engine still writes into them"""
    for pool in subject.split:
        if pool.env.get(DEFERRED_RELEASE, "1").lower() in ("0", "false", "no"):
            yield Problem(f"{pool.path}.env.{DEFERRED_RELEASE}", "is off")


@rule("nixl #1754; Mooncake #2511", "leave it out")
def _expandable_segments(subject: Subject) -> Iterator[Problem]:
    """such memory has no CUDA IPC handle: NIXL registers it and then, silently, copies over TCP, 600 times slower"""
    for pool in subject.split:
        for name in ALLOCATORS:
            said = pool.env.get(name, "").replace(" ", "").lower()
            if "expandable_segments:true" in said or "expandable_segments:1" in said:
                would_do = "say expandable_segments:False, or leave it out"
                yield Problem(f"{pool.path}.env.{name}", f"is {pool.env[name]}", would_do)


@rule("nixl #366; vllm #26382", "take UCX_TLS out, or say transfer.allow_tcp: true")
def _transports(subject: Subject) -> Iterator[Problem]:
    """KV crawls: an H200 does 0.5 GB/s without cuda_ipc, and a long prompt waits seconds for its first token"""
    if subject.setting("transfer.allow_tcp") is True:
        return
    for pool in subject.split:
        said = pool.env.get("UCX_TLS", "")
        if said and not said.startswith("^") and not FAST_TRANSPORTS.search(said):
            yield Problem(f"{pool.path}.env.UCX_TLS", f"is {said}, which leaves TCP for the KV")


@pool_rule("", "leave it out: engines talk with one another alone, and the model is fetched before, by `disagg serve`")
def _proxies(pool: PoolView) -> Iterator[Problem]:
    """ranks register with their bootstrap server through the proxy, which knows none: prefill is never ready"""
    for name in pool.env:
        if name.lower() in PROXIES - {"no_proxy"}:
            yield Problem(f"{pool.path}.env.{name}", "names a proxy for engines")


@pool_rule("", "leave it out: disagg says each engine's addresses and ranks")
def _launcher_ranks(pool: PoolView) -> Iterator[Problem]:
    """torch and SGLang take it for their own: a rank waits for a store or a device that is another program's"""
    for name in pool.env:
        if name in RANKS:
            yield Problem(f"{pool.path}.env.{name}", "is what a launcher says of its own ranks")
