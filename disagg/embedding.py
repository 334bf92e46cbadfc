"""The embedding worker role: an engine that reads a text and answers with one vector, or with its scores of classes.

Way:   disagg/role_table.py -> [EmbeddingRole]; its legs: disagg/sglang/embedding_leg.py
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from disagg.roles import Role
from disagg.worker_role import WorkerRole
from transfer.canary import RankEndpoint, probe_embedding


class EmbeddingRole(WorkerRole):
    """It has no partner, and makes no tokens: a request for some ends its scheduler, so that even its probes ask for
    vectors."""

    name: ClassVar = Role.EMBEDDING
    makes_tokens: ClassVar = False
    embeds: ClassVar = True
    defaults: ClassVar = {
        # Encoders (BERT, XLM-R) look at a text as a whole: neither a part of it nor a cached beginning would do. A
        # decoder model takes chunks and cached prefixes.
        "chunked_prefill_size": -1,
        "disable_radix_cache": True,
        "page_size": 1,
        "grammar_backend": "none",  # without tokens there is nothing to constrain, and its tables take 100 MB
    }

    def arguments(self, pool_engine: Mapping[str, Any], *, device: str, bootstrap_port: int) -> dict[str, Any]:
        return {**self.defaults, **pool_engine, "is_embedding": True}

    async def prove(
        self, sender: RankEndpoint | None, own: RankEndpoint, room: int, limit_s: float, transfer_s: float | None = None
    ) -> None:
        await probe_embedding(own, limit_s)

    async def probe(self, endpoint: RankEndpoint, limit_s: float) -> None:
        await probe_embedding(endpoint, limit_s)

    def new_tokens(self, asked: int) -> int:
        return 0
