"""Legs over the plane, sent by a bare PlaneClient: what comes of them without frontend and coordinator."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from disagg.plane import messages as m
from disagg.plane.client import PlaneClient

PROMPT = m.pack_ids(range(46))


class Leg:
    """`first_s`: `time.perf_counter` when the first token came."""

    def __init__(self) -> None:
        self.tokens = 0
        self.first_s: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self.end: m.LegEnd | None = None

    def on_tokens(self, _offset: int, token_ids: list[int], _logprobs: object) -> None:
        self.tokens += len(token_ids)
        if not self.first_s.done():
            self.first_s.set_result(time.perf_counter())

    def on_stage(self, _name: str, _cached_tokens: int | None = None) -> None:
        pass

    def on_end(self, end: m.LegEnd) -> None:
        self.end = end


def send(client: PlaneClient, number: int, sampling: dict[str, Any]) -> Leg:
    leg = Leg()
    client.submit(leg, leg_id=f"{number:034x}", prompt=PROMPT, sampling=sampling, dp_rank=0, bootstrap=None)
    return leg
