"""What stands behind the HTTP layer of one frontend process: coordinator, router, controller, counters.

Way:   HTTP handlers -> [Service] -> coordinator; engines come to it through the registry alone
Owns:  this frontend's number, which every request id begins with
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry, generate_latest

from disagg.adapters import Adapter, Served
from disagg.coordinator.coordinator import Coordinator
from disagg.coordinator.request import Request
from disagg.coordinator.sink import Sink
from disagg.errors import DeadlineExceeded, LegLost
from disagg.frontend.http1 import Refusals
from disagg.frontend.key_limits import NO_LIMITS, Meters
from disagg.frontend.page.feed import Feed
from disagg.frontend.peers import NUMBER_DIGITS
from disagg.lives import adapter_key
from disagg.plane.messages import MetricFamily
from disagg.registry.control import ControlClient
from disagg.registry.orders import NO_CONTROLLER, Answer, Asked, Status
from disagg.registry.records import State
from disagg.routing.router import Router
from disagg.telemetry.engine_metrics import BYTES_MAX, Told, labels_of, size_of
from disagg.telemetry.metrics import Figures, FrontendMetrics
from disagg.telemetry.pulse import Pulse
from disagg.telemetry.traces.tracer import Tracer

log = logging.getLogger(__name__)

RANDOM_BYTES = (32 - NUMBER_DIGITS) // 2
LOADS_S = 2.0
ENGINE_METRICS_S = 5.0  # Prometheus waits for 10
LIVE_SHOWN = 100  # requests in a status


class Service:
    """Implements disagg.frontend.backend.Backend."""

    def __init__(
        self,
        *,
        model_name: str,
        router: Router,
        coordinator: Coordinator,
        control: ControlClient | None,
        number: int = 0,
        has_peers: bool = False,
        refusals: Refusals | None = None,
        generates: bool = True,
        embeds: bool = False,
        group: str = "",
        feed: Feed | None = None,
        tracer: Tracer | None = None,
        metric_aliases: Sequence[str] = (),
        meters: Meters = NO_LIMITS,
    ) -> None:
        """`group`: of its engines, where there are several models; these share a `feed`."""
        self.model_name = model_name
        self.generates, self.embeds = generates, embeds
        self.created_s = int(time.time())
        self._router, self._connections = router, router.connections
        self._coordinator, self._control = coordinator, control
        self._served, self._served_with = Served(model_name), self._connections.adapters
        self._prefix = f"{number:0{NUMBER_DIGITS}x}"
        self._tracer = tracer
        own_number = number if has_peers else None
        self._metrics = FrontendMetrics(model_name, self._lane_of, metric_aliases, own_number)
        self._group = group
        name = f"frontend {number}" + f" {model_name}" * bool(group)
        self.pulse = Pulse(name, coordinator.live, lambda: coordinator.waiting)
        self.feed = feed or Feed(model_name, coordinator, router.connections)
        self._refusals, self._meters = refusals or Refusals(), meters
        self._telling: dict[tuple[str, str], asyncio.Task[None]] = {}  # pairs whose lost KV the controller hears of now
        coordinator.on_transfer_lost = self._transfer_lost

    @property
    def served(self) -> Served:
        if self._served_with is not self._connections.adapters:
            self._served_with = self._connections.adapters
            self._served = Served(self.model_name, frozenset(self._served_with))
        return self._served

    @property
    def adapters(self) -> Mapping[str, Adapter]:
        return self._connections.adapters

    @property
    def request_tokens_max(self) -> int:
        """Prompt + output that every READY engine can hold; 0 while none is known."""
        return self._connections.request_tokens_max

    @property
    def embedding_tokens_max(self) -> int:
        return self._connections.embedding_tokens_max

    @property
    def ignored(self) -> dict[str, str]:
        """Of all engines: a request may come to any of them, and to another one when it migrates."""
        return {name: would_do for r in self._connections.records.values() for name, would_do in r.ignores.items()}

    async def run(self, request: Request, sink: Sink) -> None:
        try:
            await self._coordinator.run(request, sink)
        finally:
            self._metrics.ended(request)
            self.pulse.ended(request)
            self.feed.ended(request)

    def ready(self) -> tuple[bool, str]:
        if self._is_ready():
            return True, ""
        waiting = [
            f"{r.id} is {r.state}" + (f": {r.detail}" if r.detail else "") for r in self._connections.records.values()
        ]
        return False, "; ".join(waiting) or "no engine is registered"

    def status(self, owner: bytes | None) -> dict[str, Any]:
        """Engines as the registry has them, with this frontend's own count of what runs on each."""
        live = (r for r in self._coordinator.live.values() if owner is None or (owner and r.owner == owner))
        engines = []
        for record in sorted(self._connections.records.values(), key=lambda r: r.id):
            engine = msgspec.to_builtins(record) | {"model": self.model_name}
            engine["since"] = engine.pop("since_s")
            engine["peers"] = sorted(self._connections.met_with(record.life))
            engine["in_flight_by_rank"] = self._connections.in_flight(record.life)
            engine["in_flight"] = sum(engine["in_flight_by_rank"])
            engines.append(engine)
        return {
            "model": self.model_name,
            "adapters": sorted(self.adapters),
            "ready": self._is_ready(),
            "engines": engines,
            "frontend": {
                "pid": os.getpid(),
                **self.counts(),
                "live": [
                    {"id": r.id, "phase": r.phase.name.lower(), "tokens": len(r.emitted_ids)}
                    for r in islice(live, LIVE_SHOWN)
                ],
            },
        }

    async def loads(self) -> dict[str, Any]:
        """Engine life -> its ranks' own newest snapshots; an engine that does not answer in time has none."""
        clients = self._connections.clients
        answers = await asyncio.gather(*(client.loads(LOADS_S) for client in clients.values()), return_exceptions=True)
        return {
            life: [] if isinstance(ranks, BaseException) else [msgspec.structs.asdict(rank) for rank in ranks]
            for life, ranks in zip(clients, answers, strict=True)
        }

    async def engine_metrics(self, engine_id: str | None) -> list[Told]:
        """What engines count themselves, of one or of all; one that does not answer in time, or with more than there is
        room for, has told nothing."""
        found = [r for r in self._connections.records.values() if engine_id in (None, r.id)]
        labels = [labels_of(r.id, r.role.value, self.model_name) for r in found]
        left = BYTES_MAX

        async def ask(life: str, said: str) -> list[MetricFamily] | None:
            nonlocal left
            families = await self._metrics_of(life, said)
            size = size_of(families or ())
            if size > left:
                return None
            left -= size
            return families

        asked = (ask(r.life, said) for r, said in zip(found, labels, strict=True))
        return [Told(said, told) for said, told in zip(labels, await asyncio.gather(*asked), strict=True)]

    async def _metrics_of(self, life: str, labels: str) -> list[MetricFamily] | None:
        client = self._connections.clients.get(life)
        try:
            return None if client is None else await client.metrics(labels, ENGINE_METRICS_S)
        except (TimeoutError, LegLost):
            return None

    async def flush_caches(self, wait_s: float) -> dict[str, str]:
        """By life, of all that serve or are drained; one that is not connected now, or silent, has not been flushed."""
        clients = self._connections.clients
        lives = [r.life for r in self._connections.records.values() if r.state in (State.READY, State.DRAINING)]

        async def flush(life: str) -> str:
            if life not in clients:
                return "there is no connection to it now"
            try:
                return await clients[life].flush_cache(wait_s)
            except (TimeoutError, LegLost) as error:
                return str(error) or "no answer in time"

        return dict(zip(lives, await asyncio.gather(*map(flush, lives)), strict=True))

    def owner_of(self, request_id: str) -> bytes | None:
        request = self._coordinator.find(request_id)
        return None if request is None else request.owner

    def timeline(self, request_id: str) -> dict[str, Any]:
        """Events in milliseconds since the request was received, and the facts known so far."""
        request = self._coordinator.find(request_id)
        assert request is not None, request_id
        events = sorted(request.timeline.items(), key=lambda event: event[1])
        prefill = request.facts.prefill
        sender = prefill.life if prefill else ""
        lane = next((r.lane for r in self._connections.records.values() if r.life == sender), "")
        return {
            "id": request.id,
            "model": self.model_name,
            "phase": request.phase.name.lower(),
            "timeline_ms": {"received": 0.0}
            | {name: round((at_s - request.received_at_s) * 1e3, 3) for name, at_s in events},
            "lane": lane or None,
            "usage": request.usage,
            "tries": request.tries,
            **request.facts.shown(),
        }

    def cancel(self, request_id: str) -> bool:
        return self._coordinator.cancel(request_id)

    async def engine_log(self, engine_id: str, lines: int) -> str | None:
        return await self._control.log_lines(engine_id, lines) if self._control else None

    async def drain(self, engine_id: str, restart: bool) -> str | None:
        return await self._control.drain(engine_id, restart) if self._control else "there is no controller"

    async def change(self, asked: Asked) -> Answer:
        return await self._control.change(asked) if self._control else NO_CONTROLLER

    async def changes(self, show: int) -> Status:
        return await self._control.changes(show) if self._control else Status()

    async def load_adapter(self, name: str, path: str, pinned: bool) -> str | None:
        key = adapter_key(self._group, name)
        return await self._control.load_adapter(key, path, pinned) if self._control else "there is no controller"

    async def unload_adapter(self, name: str) -> str | None:
        key = adapter_key(self._group, name)
        return await self._control.unload_adapter(key) if self._control else "there is no controller"

    def _is_ready(self) -> bool:
        """For tokens where it makes some: a lost embedding engine must not take the whole frontend out of use."""
        return self._router.is_ready(embeds=not self.generates)

    def _transfer_lost(self, prefill: str, decode: str) -> None:
        """Tells the controller, which alone can find out whose fault it is. Once at a time of each pair."""
        pair = prefill, decode
        if self._control is not None and pair not in self._telling:
            self._telling[pair] = task = asyncio.create_task(self._tell_transfer_lost(self._control, pair))
            task.add_done_callback(lambda _: self._telling.pop(pair))

    async def _tell_transfer_lost(self, control: ControlClient, pair: tuple[str, str]) -> None:
        try:
            await control.transfer_lost(*pair)
        except DeadlineExceeded as error:
            log.warning("nobody hears that KV did not come from %s to %s: %s", *pair, error)

    def new_request_id(self) -> str:
        return self._prefix + os.urandom(RANDOM_BYTES).hex()

    def figures(self) -> Figures:
        now = self.counts() | {"tasks": len(asyncio.all_tasks())}
        self._metrics.look(self._coordinator.live.values())
        told = self._meters.told
        told["disagg_errors"] = {(code,): count for code, count in self._refusals.errors.items()}
        if self._tracer is not None:
            told["disagg_trace_spans"] = {(outcome,): count for outcome, count in self._tracer.told.items()}
        return self._metrics.figures(now, self._refusals.by_reason, told)

    def metrics(self, others: Sequence[Figures]) -> bytes:
        return generate_latest(self.registry(others))

    def registry(self, others: Sequence[Figures]) -> CollectorRegistry:
        """As `metrics`, before it is text."""
        connections = self._connections
        states = [r.state for r in connections.records.values()]
        self._metrics.engines.look(connections.records.values(), connections.engines)
        engines = {"engines_ready": states.count(State.READY), "engines": len(states), "ready": int(self._is_ready())}
        return self._metrics.up_to_date(self.figures(), others, engines, connections.granted, connections.caches)

    def _lane_of(self, engine_id: str) -> str:
        record = self._connections.records.get(engine_id)
        return "" if record is None else record.lane

    def counts(self) -> dict[str, int]:
        """What is alive here; all 0 once everything has been given back."""
        coordinator = self._coordinator
        return {
            "requests": len(coordinator.live),
            "queued": coordinator.waiting,
            "attempts": len(coordinator.attempts),
            "rooms": len(coordinator.rooms),
            "places": self._router.endpoints.places_taken,
        }
