"""Small requests with a known shape: does KV move between these two incarnations, does this rank make steps?

Way:   a role's `prove` and `probe` -> [probe_pair: a real transfer; probe_rank: one engine alone;
       probe_embedding: one that makes vectors] -> plane clients
Fails: CanaryFailed with the first reason (never that the engine is full: hosts grant canaries in any case). Legs that
       still run are aborted then; each stays in its RankEndpoint's `legs` until the engine has let go of it
"""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass
from typing import Any

from disagg.errors import DisaggError
from disagg.plane import messages as m
from disagg.plane.client import PlaneClient

PROBE_TOKENS = 32
PROBE_NEW_TOKENS = 2  # the first is prefill's, the second decode's own, made from the KV that came
HUM_IDS = [10, 11, 12, 13]
# SGLang answers a leg with this bootstrap host without any peer: a fake transfer, and decode goes on from whatever its
# KV memory holds. Its own warm-up does it, with the dp rank as the room.
FAKE_HOST, FAKE_PORT = "2.2.2.2", 0
GREEDY: dict[str, Any] = {"temperature": 0.0, "ignore_eos": True}


class CanaryFailed(DisaggError):
    was_unread = False
    """Of a busy engine: its prompt was not read in time. Nothing is known of its KV then."""


@dataclass(frozen=True, slots=True)
class RankEndpoint:
    """One dp rank of one incarnation."""

    life: str
    dp_rank: int
    dp_size: int
    bootstrap: str  # host:port; empty unless prefill
    client: PlaneClient

    @property
    def name(self) -> str:
        return f"{self.life}/{self.dp_rank}"


async def probe_pair(
    prefill: RankEndpoint | None, decode: RankEndpoint, room: int, limit_s: float, transfer_s: float | None = None
) -> None:
    """One greedy request through the pair; without a prefill, through the aggregated engine `decode` alone.

    `transfer_s`: for busy engines, the limit from when the prompt has been read. Raises CanaryFailed."""
    prompt = [room % 251 + 1, *range(10, 9 + PROBE_TOKENS)]  # a first token of its own: less is cached
    if prefill is None:
        await _complete([(decode, PROBE_NEW_TOKENS)], prompt, None, limit_s)
        return
    host, port = prefill.bootstrap.rsplit(":", 1)
    meet = m.Bootstrap(host, int(port), room, prefill.dp_rank)
    await _complete([(prefill, 1), (decode, PROBE_NEW_TOKENS)], prompt, meet, limit_s, transfer_s)


async def probe_rank(
    endpoint: RankEndpoint, new_tokens: int, limit_s: float, bootstrap: m.Bootstrap | None = None
) -> None:
    """Liveness of one rank, alone: a few steps of its scheduler and its model. `bootstrap`: for half of a pair, see
    `no_peer`."""
    await _complete([(endpoint, new_tokens)], HUM_IDS, bootstrap, limit_s)


async def probe_embedding(endpoint: RankEndpoint, limit_s: float) -> None:
    """Liveness of one rank that makes vectors. One that was asked for tokens would die."""
    await _complete([(endpoint, 0)], HUM_IDS, None, limit_s, embeds=True)


def no_peer(endpoint: RankEndpoint) -> m.Bootstrap:
    """Where half of a pair meets nobody, and works all the same."""
    return m.Bootstrap(FAKE_HOST, FAKE_PORT, endpoint.dp_rank, endpoint.dp_rank)


async def _complete(
    parts: list[tuple[RankEndpoint, int]],
    prompt: list[int],
    meet: m.Bootstrap | None,
    limit_s: float,
    transfer_s: float | None = None,
    *,
    embeds: bool = False,
) -> None:
    """All parts at once, each with its count of new tokens; returns when all have ended well. The first one reads the
    prompt."""
    names = " -> ".join(endpoint.name for endpoint, _ in parts)
    legs = [_Leg(endpoint, new_tokens) for endpoint, new_tokens in parts]
    reader = legs[0]

    def failed(what: str) -> CanaryFailed:
        error = CanaryFailed(f"canary {names}", what)
        error.was_unread = transfer_s is not None and not reader.is_read
        return error

    try:
        for leg in legs:
            leg.begin(prompt, meet, embeds)
        async with asyncio.timeout(limit_s) as limit:
            if transfer_s is not None:
                await reader.read_or_ended.wait()
                limit.reschedule(asyncio.get_running_loop().time() + transfer_s)
            for ending in asyncio.as_completed([leg.ended for leg in legs]):
                end = await ending
                if end.reason not in m.WELL:
                    raise failed(end.detail or end.reason)
                if embeds and not end.embedding:
                    raise failed("it ended without a vector")
    except TimeoutError:
        silent = [leg.endpoint.name for leg in legs if not leg.ended.done()]
        within_s = transfer_s if transfer_s is not None and reader.is_read else limit_s
        raise failed(f"no end within {within_s:g} s from {', '.join(silent)}") from None
    finally:
        for leg in legs:
            leg.abort()
    for leg in legs:
        if leg.received != leg.new_tokens:
            raise failed(f"{leg.received} tokens came from {leg.endpoint.name} instead of {leg.new_tokens}")


class _Leg:
    """The receiver of one leg's frames."""

    def __init__(self, endpoint: RankEndpoint, new_tokens: int) -> None:
        self.endpoint, self.new_tokens = endpoint, new_tokens
        self.received = 0
        self.is_read = False
        self.read_or_ended = asyncio.Event()
        self.ended: asyncio.Future[m.LegEnd] = asyncio.get_running_loop().create_future()
        self._number = 0

    def begin(self, prompt: list[int], meet: m.Bootstrap | None, embeds: bool) -> None:
        self._number = self.endpoint.client.submit(
            self,
            leg_id=f"{uuid.uuid4().hex}00",  # as long as a request's legs'
            prompt=m.pack_ids(prompt),
            sampling=GREEDY | {"max_new_tokens": self.new_tokens},
            dp_rank=self.endpoint.dp_rank,
            bootstrap=meet,
            is_canary=True,
            embeds=embeds,
        )

    def abort(self) -> None:
        if not self.ended.done():
            self.endpoint.client.abort(self._number)

    def on_tokens(self, _offset: int, token_ids: list[int], _logprobs: object) -> None:
        self.received += len(token_ids)

    def on_stage(self, name: str, cached_tokens: int | None) -> None:
        if name == "transferring":
            self.is_read = True
            self.read_or_ended.set()

    def on_end(self, end: m.LegEnd) -> None:
        self.read_or_ended.set()
        if not self.ended.done():  # a wait that was given up has cancelled it
            self.ended.set_result(end)
