"""What makes an SGLang engine a decode engine: it takes KV from a prefill engine and makes a token a step.

Way:   disagg/role_table.py -> [DecodeRole]; its plugin inside SGLang: pace.py
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from decode import pace
from disagg.roles import Role
from disagg.worker_role import WorkerRole
from transfer.canary import RankEndpoint, no_peer, probe_rank
from transfer.disaggregation import kv_arguments, kv_environment

MEMORY_BACK_S = 1.0  # disagg/sglang/dead_peers.LOOK_S, transfer/ipc_cache.QUIET_S, and room


class DecodeRole(WorkerRole):
    """It cannot read a prompt: a request comes to it with the KV that a prefill engine sends."""

    name: ClassVar = Role.DECODE
    reads_prompts: ClassVar = False
    takes_kv_from: ClassVar = Role.PREFILL
    why_partner: ClassVar = "a decode engine cannot read prompts"
    is_paced: ClassVar = True

    def arguments(self, pool_engine: Mapping[str, Any], *, device: str, bootstrap_port: int) -> dict[str, Any]:
        """Nobody listens at `bootstrap_port`: without one of its own each engine would claim the default."""
        # Retracted requests keep their KV on the host; SGLang's choice (a pinned pool) calls cudaHostRegister.
        defaults = {"disaggregation_decode_retraction_backup": "cpu_tensor"} if device == "cpu" else {}
        return {**defaults, **pool_engine, "disaggregation_mode": "decode", **kv_arguments(bootstrap_port)}

    def caches_prompts(self, pool_engine: Mapping[str, Any]) -> bool:
        return bool(pool_engine.get("disaggregation_decode_enable_radix_cache"))

    def environment(self, *, first_token_s: float, pace_ms: float | None) -> dict[str, str]:
        paced = {} if pace_ms is None else {pace.VARIABLE: f"{pace_ms:g}"}
        return kv_environment(first_token_s) | paced

    async def probe(self, endpoint: RankEndpoint, limit_s: float) -> None:
        """Two tokens: the first is made up by SGLang, as if it were a prefill's."""
        await probe_rank(endpoint, 2, limit_s, no_peer(endpoint))

    def asks(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """It has not read the prompt: its logprobs come from the prefill's leg."""
        return {name: value for name, value in asked.items() if name != "logprob_start_len"}

    def memory_back_s(self, device: str) -> float:
        """Its KV pool is mapped by the prefill engines that sent to it, until they hear of its end."""
        return MEMORY_BACK_S if device == "cuda" else 0.0
