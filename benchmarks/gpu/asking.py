"""Requests as the stages send them: token ids in, token ids out; streams, and streams over a pair of bare servers.

Way:   a stage -> [generate, drive_pairs] -> HTTP
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any
from urllib.parse import urlsplit

import httpx

from benchmarks.load import ANSWER_S, Answer, _Reader, post

ROOM_BITS = 62


def body(prompt: list[int], tokens: int, **more: Any) -> dict[str, Any]:
    """Greedy, of a known length."""
    greedy = {"temperature": 0, "max_tokens": tokens, "ignore_eos": True}
    return {"model": "bench", "prompt": prompt, **greedy, **more}


STREAMED: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}


def random_prompts(seed: str, count: int, tokens: int, vocabulary: int) -> list[list[int]]:
    """No two begin alike: no prefix of one is cached for another."""
    random = Random(seed)
    return [random.choices(range(3, vocabulary), k=tokens) for _ in range(count)]


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


async def follow(url: str, prompt: list[int], tokens: int, stream: Stream) -> None:
    """Fills `stream` as it comes; what goes wrong is its `error`."""
    now_s = asyncio.get_running_loop().time
    asked = body(prompt, tokens, return_token_ids=True, stream=True)
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


async def drive_pairs(
    urls: tuple[str, str], requests: Iterable[tuple[bytes, bytes]], concurrency: int, limit_s: float = ANSWER_S
) -> list[Answer]:
    """As `drive`, each request to two servers at once; the answers are the decode server's."""
    left, answers = iter(requests), list[Answer]()
    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(_pairs_one_by_one(urls, left, answers, limit_s))
    return answers


async def _pairs_one_by_one(
    urls: tuple[str, str], left: Iterator[tuple[bytes, bytes]], answers: list[Answer], limit_s: float
) -> None:
    readers: list[_Reader] = []
    try:
        for request in left:
            if not readers or any(reader.is_lost for reader in readers):
                readers = [await _connect(url) for url in urls]
            sent = [reader.send(leg) for reader, leg in zip(readers, request, strict=True)]
            answer = sent[1]
            answer.sent_s = sent[0].sent_s
            try:
                async with asyncio.timeout(limit_s):
                    await asyncio.gather(*(reader.ended for reader in readers))
            except TimeoutError:
                answer.error = f"no end within {limit_s:g} s"
                for reader in readers:
                    reader.drop()
            answer.error = answer.error or sent[0].error
            answers.append(answer)
    finally:
        for reader in readers:
            with contextlib.suppress(AttributeError):
                reader.drop()


async def _connect(url: str) -> _Reader:
    host, port = urlsplit(url).netloc.split(":")
    _, reader = await asyncio.get_running_loop().create_connection(lambda: _Reader(False), host, int(port))
    return reader
