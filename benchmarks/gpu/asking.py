"""Requests as the stages send them: token ids in, token ids out; streams, and streams over a pair of bare servers.

Way:   a stage -> [generate, follow, pair_requests] -> HTTP
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any

import httpx

from benchmarks.load import ANSWER_S, STREAMED, post

ROOM_BITS = 62


def body(prompt: list[int], tokens: int, **more: Any) -> dict[str, Any]:
    """Greedy, of a known length."""
    greedy = {"temperature": 0, "max_tokens": tokens, "ignore_eos": True}
    return {"model": "bench", "prompt": prompt, **greedy, **more}


async def generate(url: str, prompt: list[int], tokens: int) -> list[int]:
    """The ids that a deployment of ours answers with."""
    async with httpx.AsyncClient(trust_env=False, timeout=ANSWER_S) as client:
        answer = await client.post(f"{url}/v1/completions", json=body(prompt, tokens, return_token_ids=True))
    if answer.status_code != 200:
        raise RuntimeError(f"{answer.status_code}: {answer.text[:500]}")
    ids: list[int] = answer.json()["choices"][0]["token_ids"]
    return ids


@dataclass
class Stream:
    """What came of one stream, while it comes and after it."""

    ids: list[int] = field(default_factory=list)
    came_s: list[float] = field(default_factory=list)  # the loop's clock, of each event with tokens
    reason: str = ""
    error: str = ""
    request_id: str = ""


async def follow(url: str, prompt: list[int], tokens: int, stream: Stream, **more: Any) -> None:
    """Fills `stream` as it comes; what goes wrong is its `error`."""
    now_s = asyncio.get_running_loop().time
    asked = body(prompt, tokens, return_token_ids=True, stream=True, **more)
    try:
        async with (
            httpx.AsyncClient(trust_env=False, timeout=ANSWER_S) as client,
            client.stream("POST", f"{url}/v1/completions", json=asked) as answer,
        ):
            stream.request_id = answer.headers.get("x-request-id", "")
            if answer.status_code != 200:
                stream.error = f"{answer.status_code}: {(await answer.aread())[:300].decode(errors='replace')}"
                return
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    _take(json.loads(line.removeprefix("data: ")), stream, now_s())
    except httpx.HTTPError as error:
        stream.error = f"{type(error).__name__}: {error}"


def _take(event: dict[str, Any], stream: Stream, now_s: float) -> None:
    if "error" in event:
        stream.error = str(event["error"]["message"])
        return
    for choice in event["choices"]:
        if ids := choice.get("token_ids"):
            stream.ids += ids
            stream.came_s.append(now_s)
        stream.reason = choice.get("finish_reason") or stream.reason


def pair_requests(
    urls: tuple[str, str], bootstrap_port: int, prompts: Iterable[list[int]], tokens: int, seed: str
) -> Iterator[tuple[bytes, bytes]]:
    """Both legs of each request, as a router would send them to a prefill and a decode server."""
    random = Random(seed)
    for prompt in prompts:
        meet = {"bootstrap_host": "127.0.0.1", "bootstrap_port": bootstrap_port}
        asked = body(prompt, tokens, **STREAMED, **meet, bootstrap_room=random.getrandbits(ROOM_BITS))
        prefill, decode = (post(url, "/v1/completions", asked) for url in urls)
        yield prefill, decode
