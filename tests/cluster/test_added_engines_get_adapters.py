"""An engine that operators add while the deployment serves has every adapter before it serves."""

from __future__ import annotations

from pathlib import Path

import pytest
from changing import changing, in_virtual_time

from disagg.adapters import Adapter
from disagg.cluster.adapters import Adapters
from disagg.registry.orders import Restart, Scale
from disagg.roles import Role
from disagg.simulation import world


def test_whoever_is_added_or_starts_again_has_the_adapters(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    given = Adapter("sql", str(tmp_path), False)
    made = world.Fleet

    class WithAdapters(made):  # type: ignore[misc, valid-type]
        def __init__(self, setting, registry, places, runtime, *more, notes, **_none) -> None:  # type: ignore[no-untyped-def]
            adapters = Adapters(registry, runtime, "simulated", [given], 5.0)
            super().__init__(setting, registry, places, runtime, *more, adapters=adapters, notes=notes)

    monkeypatch.setattr(world, "Fleet", WithAdapters)

    async def scenario() -> None:
        async with changing(loaded=False) as (sim, operator):
            await operator.has_done(Scale({Role.DECODE: 3, Role.PREFILL: 3}))
            await operator.has_done(Restart(("decode-2",)))
            for life in ("prefill-2#1", "decode-2#2"):
                assert await sim.fleet.prover.up[life].client.adapters() == {"sql": 0}

    in_virtual_time(scenario)
