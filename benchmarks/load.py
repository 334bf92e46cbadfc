"""Load: N connections that each send one request after the other and read its answer, cheaply and exactly timed.

Way:   a benchmark -> [drive] -> any OpenAI or SGLang endpoint; back comes an Answer a request. A request may have two
       legs, to two servers at once: [drive_legs]
In:    requests as bytes, so that nothing is encoded while time is taken
Fails: an answer that is no 200, or ends early, is an Answer with `error`; the next request takes a fresh connection

The reader counts events and does not parse them: it must be cheaper than what it measures.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import time
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, cast
from urllib.parse import urlsplit

ANSWER_S = 300.0
STREAMED: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
_CONTENT = re.compile(rb'"(?:content|text)":"[^"]')  # the first event may only name the role
_COMPLETION = re.compile(rb'"completion_tokens":(\d+)')
_REQUEST_ID = re.compile(rb"\r\nx-request-id: *([^\r]+)", re.IGNORECASE)
TAIL_BYTES = 2048


@dataclass(slots=True)
class Answer:
    """Times are seconds of `time.perf_counter`."""

    sent_s: float
    first_s: float = 0.0  # the first text of a stream; the whole of another answer
    ended_s: float = 0.0
    came_s: array[float] = field(default_factory=lambda: array("d"))  # of each read that held events
    events: array[int] = field(default_factory=lambda: array("I"))  # how many it held
    completion_tokens: int = 0  # as the answer's usage says; 0 without one
    body: bytes = b""  # what was read, if `keep`
    request_id: str = ""  # of ours, once the head of the answer is here
    is_done: bool = False  # a stream has said that it is
    error: str = ""

    @property
    def ttft_s(self) -> float:
        return self.first_s - self.sent_s

    def events_between(self, from_s: float, to_s: float) -> int:
        return sum(count for at_s, count in zip(self.came_s, self.events, strict=True) if from_s < at_s <= to_s)

    @property
    def steps_s(self) -> list[tuple[float, float]]:
        """Each read after the first text, with the one before it."""
        return list(pairwise(at_s for at_s in self.came_s if at_s >= self.first_s))

    @property
    def gaps_s(self) -> list[float]:
        """Inter-token latencies, where each token is an event."""
        return [after_s - before_s for before_s, after_s in self.steps_s]


def post(url: str, path: str, body: dict[str, Any]) -> bytes:
    """A request, ready to be sent."""
    payload = json.dumps(body).encode()
    host = urlsplit(url).netloc
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(payload)}\r\n\r\n".encode() + payload


def chat(url: str, model: str, text: str, tokens: int) -> bytes:
    """A streamed chat of a known length, with usage."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": tokens,
        "ignore_eos": True,
        **STREAMED,
    }
    return post(url, "/v1/chat/completions", body)


async def drive(
    url: str,
    requests: Iterable[bytes],
    concurrency: int,
    *,
    keep: bool = False,
    limit_s: float = ANSWER_S,
    sink: list[Answer] | None = None,
) -> list[Answer]:
    """Answers in the order of their requests. `sink`: where they are put as they begin, for who looks on."""
    legs = ((request,) for request in requests)
    return await drive_legs((url,), legs, concurrency, keep=keep, limit_s=limit_s, sink=sink)


async def drive_legs(
    urls: Sequence[str],
    requests: Iterable[Sequence[bytes]],
    concurrency: int,
    *,
    keep: bool = False,
    limit_s: float = ANSWER_S,
    sink: list[Answer] | None = None,
) -> list[Answer]:
    """As `drive`, each request to several servers at once, a leg each; the answers are those of the last leg, sent when
    the first was, and an error of any leg is theirs."""
    left = iter(requests)
    answers = [] if sink is None else sink
    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(_one_after_the_other(urls, left, answers, keep, limit_s))
    return answers


async def _one_after_the_other(
    urls: Sequence[str], left: Iterator[Sequence[bytes]], answers: list[Answer], keep: bool, limit_s: float
) -> None:
    readers: list[Reader] = []
    for request in left:
        if not readers or any(reader.is_lost for reader in readers):
            readers = [await connect(url, keep) for url in urls]
        sent = [reader.send(leg) for reader, leg in zip(readers, request, strict=True)]
        answer = sent[-1]
        answer.sent_s = sent[0].sent_s
        answers.append(answer)
        try:
            async with asyncio.timeout(limit_s):
                for reader in readers:
                    await reader.ended
        except TimeoutError:
            answer.error = f"no end within {limit_s:g} s"
            for reader in readers:
                reader.drop()
        answer.error = answer.error or next((leg.error for leg in sent if leg.error), "")
    for reader in readers:
        reader.drop()


async def connect(url: str, keep: bool) -> Reader:
    host, port = urlsplit(url).netloc.split(":")
    _, reader = await asyncio.get_running_loop().create_connection(lambda: Reader(keep), host, int(port))
    return reader


class Reader(asyncio.Protocol):
    def __init__(self, keep: bool) -> None:
        self._keep = keep
        self.is_lost = False
        self.ended: asyncio.Future[None]
        self._answer: Answer | None = None
        self._transport: asyncio.Transport
        self._head = self._tail = b""
        self._kept: list[bytes] = []
        self._left = -1  # bytes of a body with a length; -1: chunked

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, request: bytes) -> Answer:
        self.ended = asyncio.get_running_loop().create_future()
        self._head, self._tail, self._kept, self._left = b"", b"", [], -1
        answer = self._answer = Answer(time.perf_counter())
        self._transport.write(request)
        return answer

    def drop(self) -> None:
        self.is_lost = True
        self._answer = None
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        answer = self._answer
        if answer is None:
            return
        now_s = time.perf_counter()
        if not self._head.endswith(b"\r\n\r\n"):
            data = self._take_head(data)
            if not data:
                return
        count = data.count(b"\n\n") + (self._tail[-1:] == b"\n" and data[:1] == b"\n")
        if count:
            answer.came_s.append(now_s)
            answer.events.append(count)
        if not answer.first_s and (self._left >= 0 or _CONTENT.search(self._tail + data)):
            answer.first_s = now_s
        if self._keep:
            self._kept.append(data)
        self._tail = data[-TAIL_BYTES:] if len(data) >= TAIL_BYTES else (self._tail + data)[-TAIL_BYTES:]
        if self._left > 0:
            self._left -= len(data)
        if self._left == 0 or (self._left < 0 and self._tail.endswith(b"0\r\n\r\n")):
            self._end(now_s)

    def _take_head(self, data: bytes) -> bytes:
        self._head += data
        end = self._head.find(b"\r\n\r\n")
        if end < 0:
            return b""
        self._head, rest = self._head[: end + 4], self._head[end + 4 :]
        assert self._answer is not None
        if b" 200 " not in self._head[:15]:
            self._answer.error = self._head.partition(b"\r\n")[0].decode(errors="replace")
        if named := _REQUEST_ID.search(self._head):
            self._answer.request_id = named.group(1).decode()
        if length := re.search(rb"\r\ncontent-length: *(\d+)", self._head, re.IGNORECASE):
            self._left = int(length.group(1))
        return rest

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True
        if self._answer is not None:
            self._answer.error = self._answer.error or f"the connection ended early: {exc or 'closed'}"
            self._end(time.perf_counter())

    def _end(self, now_s: float) -> None:
        answer, self._answer = self._answer, None
        assert answer is not None
        answer.ended_s = now_s
        answer.first_s = answer.first_s or now_s
        answer.is_done = b"data: [DONE]" in self._tail
        if found := _COMPLETION.findall(self._tail):
            answer.completion_tokens = int(found[-1])
        answer.body = b"".join(self._kept)
        if answer.error and not answer.body:
            answer.error += f": {self._tail[:300].decode(errors='replace')}"
        if not self.ended.done():
            self.ended.set_result(None)
