"""One model in a frontend process, from its coming to its going: its engines, its queue, its tokenizer.

Way:   main.py, roster.py -> [OneModel] -> Frontend; the registry's records of its engines -> Connections
Owns:  connections, router, coordinator and Service; the tasks that follow the registry, and that say what goes on
Fails: StartError for files of which no tokenizer can be made, or a parser that SGLang here does not have
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from disagg.adapters import Served
from disagg.coordinator.coordinator import Coordinator
from disagg.frontend.engine_tokenizer import EngineTokenizer
from disagg.frontend.http1 import Refusals
from disagg.frontend.key_limits import Meters
from disagg.frontend.page.feed import Feed
from disagg.frontend.service import Service
from disagg.frontend.spec import FrontendSpec, ModelSpec
from disagg.frontend.tokenization import Tokenization
from disagg.kv_events.blocks import BlockHasher
from disagg.registry.control import ControlClient
from disagg.registry.interface import Watched
from disagg.registry.of_model import of_model
from disagg.registry.table import Table
from disagg.routing.connections import Connections
from disagg.routing.policy import Surroundings, load_policy
from disagg.routing.router import Router
from disagg.telemetry.traces.tracer import Tracer

OwnTokens = Callable[[Callable[[], Served]], Tokenization]  # all of it but what may be named


class Ours(NamedTuple):
    """Of this process, whichever the models are."""

    secret: bytes
    control: ControlClient
    refusals: Refusals
    tracer: Tracer | None
    meters: Meters


class OneModel:
    """`feed`: of the models that are there already; None: this one is the first. `own`: where this process has the
    tokenizer."""

    def __init__(
        self, spec: FrontendSpec, model: ModelSpec, ours: Ours, own: OwnTokens | None, feed: Feed | None = None
    ) -> None:
        block_tokens = model.block_tokens
        self.spec, self._says_what_goes_on = model, spec.says_what_goes_on
        self.connections = Connections(ours.secret, block_tokens=block_tokens, kv_events=model.kv_events)
        hasher = BlockHasher(ours.secret, block_tokens) if block_tokens else None
        router = Router(self.connections, load_policy(spec.policy, Surroundings(prior=model.prior)), hasher)
        self.coordinator = Coordinator(router, spec.limits)
        self.service = Service(
            model_name=model.name,
            router=router,
            coordinator=self.coordinator,
            control=ours.control,
            number=spec.number,
            has_peers=spec.has_peers,
            refusals=ours.refusals,
            generates=model.generates,
            embeds=model.embeds,
            group=model.group,
            feed=feed or Feed(model.name, self.coordinator, self.connections, more=() if model.group else None),
            tracer=ours.tracer,
            metric_aliases=spec.metric_aliases,
            meters=ours.meters,
        )
        if feed is not None:
            feed.add(self.coordinator, self.connections)
        served = partial(getattr, self.service, "served")
        parsers = model.tool_call_parser, model.reasoning_parser
        self.tokenization: Tokenization
        if own is not None:
            self.tokenization = own(served)
        else:
            self.tokenization = EngineTokenizer(self.connections, spec.limits, served, *parsers)
        self._following: asyncio.Task[None] | None = None
        self._pulse: asyncio.Task[None] | None = None

    def follow(self, registry: Watched, on_end: Callable[[], object]) -> None:
        """`on_end`: the registry is gone, or an error has ended it."""
        views = of_model(registry.watch(), self.spec.group)
        self._following = asyncio.create_task(self.connections.follow(views), name="follow the registry")
        self._following.add_done_callback(lambda task: None if task.cancelled() else on_end())
        if self._says_what_goes_on:
            self._pulse = asyncio.create_task(self.service.pulse.beat(), name="say what goes on")

    @property
    def is_idle(self) -> bool:
        return not self.coordinator.live

    async def close(self) -> None:
        """Lets go of its engines. Raises what has ended the following."""
        tasks = [task for task in (self._following, self._pulse) if task is not None]
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        self.connections.apply(Table().view())
        for error in ended:
            if isinstance(error, Exception):
                raise error


def own_tokens(spec: FrontendSpec, model: ModelSpec) -> OwnTokens | None:
    """None where the hosts have the tokenizer. Takes its time. Imported only where it is used: elsewhere a frontend
    needs none of the tokenizer's libraries."""
    if model.tokenization == "engine":
        return None
    from disagg.frontend.own_tokenizer import OwnTokenizer, parsing_of
    from disagg.tokenizer.codec import load_codec

    codec = load_codec(Path(model.path), model.overrides)
    parsing = parsing_of(model.tool_call_parser, model.reasoning_parser, codec)
    return lambda served: OwnTokenizer(codec, served, parsing, refuses_unknown=spec.refuses_unknown)
