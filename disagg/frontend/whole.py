"""What a frontend's handlers ask of a deployment as a whole, whichever its models are.

Way:   app.py, own.py, together.py -> [Whole]: the only model's Backend, or AllModels -> each model's Service
Out:   of several models the same as of one, with the model beside what is one's own; engines, requests and counts of
       all of them together
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol

from disagg.frontend.page.feed import Feed
from disagg.frontend.service import LIVE_SHOWN, Service
from disagg.registry.orders import Answer, Asked, Status
from disagg.telemetry.engine_metrics import Told
from disagg.telemetry.metrics import Figures
from disagg.telemetry.of_models import render


class Whole(Protocol):
    """See Backend, which is one."""

    feed: Feed

    def ready(self) -> tuple[bool, str]: ...

    def status(self, owner: bytes | None) -> dict[str, Any]: ...

    async def loads(self) -> dict[str, Any]: ...

    async def engine_metrics(self, engine_id: str | None) -> list[Told]: ...

    async def flush_caches(self, wait_s: float) -> dict[str, str]: ...

    def owner_of(self, request_id: str) -> bytes | None: ...

    def timeline(self, request_id: str) -> dict[str, Any]: ...

    async def engine_log(self, engine_id: str, lines: int) -> str | None: ...

    async def drain(self, engine_id: str, restart: bool) -> str | None: ...

    async def change(self, asked: Asked) -> Answer: ...

    async def changes(self, show: int) -> Status: ...

    def figures(self) -> Figures: ...

    def metrics(self, others: Sequence[Figures]) -> bytes: ...


class AllModels:
    """Implements Whole for several models, which come and go: one at least. They share one feed."""

    def __init__(self, services: Sequence[Service]) -> None:
        self._services, self.feed = list(services), services[0].feed

    @property
    def _first(self) -> Service:
        return self._services[0]

    def add(self, service: Service) -> None:
        self._services.append(service)

    def remove(self, service: Service) -> None:
        self._services.remove(service)

    def ready(self) -> tuple[bool, str]:
        """When one can serve: a lost model must not take the whole frontend out of use."""
        answers = [service.ready() for service in self._services]
        return any(is_ready for is_ready, _ in answers), "; ".join(why_not for _, why_not in answers)

    def status(self, owner: bytes | None) -> dict[str, Any]:
        parts = [service.status(owner) for service in self._services]
        frontends = [part["frontend"] for part in parts]
        counts = self._first.counts().keys()
        live = [
            {**each, "model": part["model"]} for part, of in zip(parts, frontends, strict=True) for each in of["live"]
        ]
        return {
            "model": ", ".join(part["model"] for part in parts),
            "models": [{name: part[name] for name in ("model", "adapters", "ready")} for part in parts],
            "adapters": [f"{part['model']}:{name}" for part in parts for name in part["adapters"]],
            "ready": self.ready()[0],
            "engines": [engine for part in parts for engine in part["engines"]],
            "frontend": {
                "pid": frontends[0]["pid"],
                **{name: sum(of[name] for of in frontends) for name in counts},
                "live": live[:LIVE_SHOWN],
            },
        }

    async def loads(self) -> dict[str, Any]:
        found = await asyncio.gather(*(service.loads() for service in self._services))
        return {life: ranks for each in found for life, ranks in each.items()}

    async def engine_metrics(self, engine_id: str | None) -> list[Told]:
        found = await asyncio.gather(*(service.engine_metrics(engine_id) for service in self._services))
        return [told for each in found for told in each]

    async def flush_caches(self, wait_s: float) -> dict[str, str]:
        found = await asyncio.gather(*(service.flush_caches(wait_s) for service in self._services))
        return {life: why_not for each in found for life, why_not in each.items()}

    def owner_of(self, request_id: str) -> bytes | None:
        owners = (service.owner_of(request_id) for service in self._services)
        return next((owner for owner in owners if owner is not None), None)

    def timeline(self, request_id: str) -> dict[str, Any]:
        service = next(each for each in self._services if each.owner_of(request_id) is not None)
        return service.timeline(request_id)

    async def engine_log(self, engine_id: str, lines: int) -> str | None:
        return await self._first.engine_log(engine_id, lines)

    async def drain(self, engine_id: str, restart: bool) -> str | None:
        return await self._first.drain(engine_id, restart)

    async def change(self, asked: Asked) -> Answer:
        return await self._first.change(asked)

    async def changes(self, show: int) -> Status:
        return await self._first.changes(show)

    def figures(self) -> Figures:
        return Figures({}, {}, {}, {service.model_name: service.figures() for service in self._services})

    def metrics(self, others: Sequence[Figures]) -> bytes:
        return render({service.model_name: service.registry(_of(service, others)) for service in self._services})


def _of(service: Service, others: Sequence[Figures]) -> list[Figures]:
    found = (other.of_models.get(service.model_name) for other in others)
    return [figures for figures in found if figures is not None]
