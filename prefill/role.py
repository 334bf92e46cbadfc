"""What makes an SGLang engine a prefill engine: it reads prompts, keeps their KV until a decode engine has it.

Way:   disagg/role_table.py -> [PrefillRole]; its bootstrap server, as seen from outside: bootstrap.py
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from disagg.roles import Role
from disagg.worker_role import WorkerRole
from transfer.canary import RankEndpoint, no_peer, probe_rank
from transfer.disaggregation import kv_arguments, kv_environment


class PrefillRole(WorkerRole):
    """Its one token a request comes from its decode engine, too; decode engines find its ranks at its bootstrap
    server."""

    name: ClassVar = Role.PREFILL
    makes_tokens: ClassVar = False
    sends_kv_to: ClassVar = Role.DECODE
    why_partner: ClassVar = "each request needs one engine of both"
    has_bootstrap_server: ClassVar = True

    def arguments(self, pool_engine: Mapping[str, Any], *, device: str, bootstrap_port: int) -> dict[str, Any]:
        """The bootstrap server listens on the engine's `host`."""
        return {**pool_engine, "disaggregation_mode": "prefill", **kv_arguments(bootstrap_port)}

    def environment(self, *, first_token_s: float, pace_ms: float | None) -> dict[str, str]:
        return kv_environment(first_token_s)

    async def is_registered(self, bootstrap: str) -> bool:
        from prefill.bootstrap import ranks_are_registered  # aiohttp is slow to import, and only `serve` needs it

        return await ranks_are_registered(bootstrap)

    async def probe(self, endpoint: RankEndpoint, limit_s: float) -> None:
        await probe_rank(endpoint, 1, limit_s, no_peer(endpoint))

    def new_tokens(self, asked: int) -> int:
        return 1
