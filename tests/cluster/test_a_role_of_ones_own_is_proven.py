"""An engine of a role that is made up here starts, is proven as its role says, gets canaries, and comes back."""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar, cast

import pytest
from scene import scene

from disagg.registry.records import State
from disagg.role_table import ROLES
from disagg.roles import Role
from disagg.worker_role import WorkerRole
from transfer.canary import RankEndpoint, probe_rank

pytestmark = pytest.mark.usefixtures("quick")


class Word(StrEnum):
    EMBEDDING = "embedding"


NAME = cast("Role", Word.EMBEDDING)


class EmbeddingRole(WorkerRole):
    name: ClassVar[Role] = NAME
    makes_tokens: ClassVar = False

    async def prove(
        self, sender: RankEndpoint | None, own: RankEndpoint, room: int, limit_s: float, transfer_s: float | None = None
    ) -> None:
        assert sender is None
        await probe_rank(own, 1, limit_s)


async def test_it_is_started_proven_probed_and_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ROLES, NAME, EmbeddingRole())
    async with scene(NAME) as s:
        ready = s.record("embedding-0")
        assert ready.bootstrap == ready.detail == ""
        first = s.nodes["embedding-0"].engine.legs[0]
        assert (first.sampling["max_new_tokens"], first.bootstrap) == (1, None)
        await s.nodes["embedding-0"].die("killed by SIGKILL")
        assert (await s.until_seen("embedding-0", State.DEAD)).detail.startswith("killed by SIGKILL")
        await s.until_ready("embedding-0", 2)
