"""Rounds as of changing.py with several models: one comes and goes while the others serve.

Way:   a test, `soak --changes N --models` -> run_changes(…, ModelsCampaign)
Checks: those of changing.py; requests go to every model that frontends name, and each has its whole answer
"""

from __future__ import annotations

from typing import Any

import yaml

from disagg.registry import orders
from disagg.registry.orders import Asked
from disagg.registry.records import EngineRecord, ModelState
from disagg.roles import Role
from disagg.simulation.changing import BAD, COUNTS, DECODE, PREFILL, TOKENS, Campaign
from disagg.simulation.world import Stream

GOES = "is served no longer"  # what somebody says yes to here, and to nothing else


class ModelsCampaign(Campaign):
    """`pair` has prefill and decode engines, `alone` aggregated ones, and so has `guest`, which is there at times."""

    room_max = 11

    def _begins_with(self) -> str:
        return self._of_models(2, 2, guest=False)

    def _is_to_serve(self, record: EngineRecord) -> bool:
        model = self._world.registry.models.get(record.group)
        return model is not None and model.state is ModelState.SERVING

    async def _ask(self, order: orders.Order) -> orders.Answer:
        changes = self._world.changes
        asked = await changes.ask(Asked(order, dry_run=True))
        is_agreed = GOES in asked.question and ";" not in asked.question
        return await changes.ask(Asked(order, agreed=asked.question if is_agreed else ""))

    def _opened(self, prompt: list[int]) -> list[Stream]:
        named = sorted(self._world.of_several[0].named)
        return [self._world.open(prompt, TOKENS, model=key) for key in named]

    def _order(self) -> tuple[orders.Order, bool]:
        random, engines = self._random, list(self._world.changes.engines.values())
        prefill, decode = random.choice(COUNTS[:2]), random.choice(COUNTS[:2])
        match random.choice(("scale", "restart", "apply", "apply", "bad", "role", "rollback")):
            case "scale":
                counts = {"pair.prefill": prefill, "pair.decode": decode, "alone.aggregated": random.choice(COUNTS[:2])}
                return orders.Scale(counts), False
            case "restart":
                return orders.Restart(random.choice(((), ("pair",), ("alone.aggregated",), (engines[0].id,)))), False
            case "apply":
                kv_tokens, guest = random.choice((32768, 65536)), random.random() < 0.5
                return orders.Apply(self._of_models(prefill, decode, kv_tokens, guest=guest)), False
            case "bad":
                env = {BAD: str(random.random())}
                return orders.Apply(self._of_models(prefill, decode, guest=True, env=env)), True
            case "role":
                engine = random.choice([each for each in engines if each.group == "pair"])
                role = Role.DECODE if engine.role is Role.PREFILL else Role.PREFILL
                return orders.ChangeRole(engine.id, role), False
            case _:
                return orders.Rollback(random.choice(self._world.changes.status().revisions).number), False

    def _of_models(
        self, prefill: int, decode: int, kv_tokens: int = 65536, *, guest: bool, env: dict[str, str] | None = None
    ) -> str:
        alone = {"replicas": 2, "engine": DECODE | {"kv_tokens": kv_tokens}}
        models: dict[str, Any] = {
            "pair": {
                "path": "a",
                "prefill": {"replicas": prefill, "engine": PREFILL},
                "decode": {"replicas": decode, "engine": DECODE | {"kv_tokens": kv_tokens}},
            },
            "alone": {"path": "b", "aggregated": alone},
        }
        if guest:
            models["guest"] = {"path": "c", "aggregated": alone | {"env": env or {}}}
        return yaml.safe_dump({"version": 1, "name": "changing", "device": "simulated", "models": models})
