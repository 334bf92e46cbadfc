"""One streamed completion of a running endpoint, timed as its client sees it.

Way:   Planned -> [ask] -> POST /v1/completions with token ids -> events -> Timed
Out:   seconds of the loop's clock: of the first text, and of each event after it. An event may hold several tokens
Fails: NoAnswer says what came instead
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import msgspec

DATA = b"data: "


class NoAnswer(Exception):
    """What became of the request."""


@dataclass(slots=True)
class Timed:
    first_s: float = 0.0
    ended_s: float = 0.0
    cached_tokens: int = 0
    output_tokens: int = 0
    gaps: list[tuple[float, int]] = field(default_factory=list)


async def ask(session: aiohttp.ClientSession, url: str, body: Mapping[str, Any], headers: Mapping[str, str]) -> Timed:
    """Raises NoAnswer."""
    now_s, timed = asyncio.get_running_loop().time, Timed()
    try:
        async with session.post(f"{url}/v1/completions", json=body, headers=headers) as response:
            if response.status != 200:
                raise NoAnswer(f"status {response.status}: {(await response.text())[:200]}")
            async for line in response.content:
                if line.startswith(DATA) and not line.startswith(b"data: [DONE]"):
                    _read(line[len(DATA) :], now_s(), timed)
    except (aiohttp.ClientError, TimeoutError, msgspec.DecodeError, ValueError) as error:
        raise NoAnswer(f"{type(error).__name__}: {error}") from error
    if not timed.first_s:
        raise NoAnswer("an answer without text")
    return timed


def _read(event: bytes, at_s: float, timed: Timed) -> None:
    tree = msgspec.json.decode(event)
    if "error" in tree:
        raise NoAnswer(f"{tree['error']}"[:200])
    if any(choice.get("text") for choice in tree.get("choices", ())):
        if timed.first_s:
            timed.gaps.append((at_s - timed.ended_s, 1))
        else:
            timed.first_s = at_s
        timed.ended_s = at_s
    usage = tree.get("usage") or {}
    timed.output_tokens = usage.get("completion_tokens") or timed.output_tokens
    timed.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or timed.cached_tokens
