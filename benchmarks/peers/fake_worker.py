"""A SGLang server without a model, that costs little: what a router's PD mode needs, and nothing else.

In:    `python -m benchmarks.peers.fake_worker prefill|decode STEP_MS`, with `serve` of processes.py
Out:   POST /v1/chat/completions: SSE events as SGLang's, one token an event. A prefill worker answers one token at
       once; a decode worker steps every STEP_MS (0: as fast as it can) and writes all streams of a step together
       anything else: a JSON object that describes it

It looks for three fields of the body and parses no JSON. As StubEngine, it knows nothing of rooms or KV.
"""

from __future__ import annotations

import asyncio
import re
import sys
import time
from dataclasses import dataclass
from typing import cast

from benchmarks.processes import serve

MODEL = "m"
_ABOUT = (
    b'{"id":"m","model_path":"m","served_model_name":"m","tokenizer_path":"m","is_generation":true,"version":"0.5.20",'
    b'"tp_size":1,"dp_size":1,"max_running_requests":4096,"max_total_num_tokens":1048576,"status":"ok",'
    b'"object":"list","data":[{"id":"m","object":"model","created":0,"owned_by":"sglang","root":"m"}],"loads":[]}'
)
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)
_MAX_TOKENS = re.compile(rb'"max_(?:completion_)?tokens": ?(\d+)')
_STREAM = re.compile(rb'"stream": ?true')
_USAGE = re.compile(rb'"include_usage": ?true')
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
)


def _event(room: int, choices: bytes, usage: bytes = b"null") -> bytes:
    event = (
        b'data: {"id":"%032x","object":"chat.completion.chunk","created":1764000000,"model":"m",'
        b'"choices":[%b],"usage":%b}\n\n' % (room, choices, usage)
    )
    return b"%x\r\n%b\r\n" % (len(event), event)


def _delta(delta: bytes, finish: bytes = b"null") -> bytes:
    return b'{"index":0,"delta":{%b},"logprobs":null,"finish_reason":%b,"matched_stop":null}' % (delta, finish)


@dataclass(slots=True, eq=False)
class _Stream:
    transport: asyncio.Transport
    head: bytes
    token: bytes
    end: bytes
    left: int

    def step(self) -> bool:
        """True while it goes on."""
        self.left -= 1
        if self.left > 0 and not self.head:
            self.transport.write(self.token)
            return True
        self.transport.write(self.head + self.token + (b"" if self.left > 0 else self.end))
        self.head = b""
        return self.left > 0


class Steps:
    """The engine's loop: lives while streams do."""

    def __init__(self, step_s: float) -> None:
        self._step_s = step_s
        self._streams: set[_Stream] = set()
        self._stepping: asyncio.Task[None] | None = None

    def add(self, stream: _Stream) -> None:
        self._streams.add(stream)
        if self._stepping is None or self._stepping.done():
            self._stepping = asyncio.get_running_loop().create_task(self._run())

    def drop(self, transport: asyncio.BaseTransport) -> None:
        self._streams = {stream for stream in self._streams if stream.transport is not transport}

    async def _run(self) -> None:
        due_s = time.monotonic()
        while self._streams:
            for ended in [stream for stream in self._streams if not stream.step()]:
                self._streams.discard(ended)
            now_s = time.monotonic()
            due_s = max(due_s + self._step_s, now_s)
            await asyncio.sleep(due_s - now_s)


class Worker(asyncio.Protocol):
    def __init__(self, is_prefill: bool, steps: Steps) -> None:
        self._is_prefill, self._steps = is_prefill, steps
        self._buffer = bytearray()
        self._transport: asyncio.Transport
        self._answered = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._steps.drop(self._transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (taken := take_request(self._buffer)) is not None:
            body, size = taken
            self._answer(body)
            del self._buffer[:size]

    def _answer(self, body: bytes) -> None:
        if not _STREAM.search(body):
            head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
            self._transport.write(head % len(_ABOUT) + _ABOUT)
            return
        self._answered += 1
        room = id(self) + self._answered
        found = _MAX_TOKENS.search(body)
        count = 1 if self._is_prefill or found is None else int(found.group(1))
        end = _event(room, _delta(b"", b'"length"'))
        if _USAGE.search(body):
            usage = b'{"prompt_tokens":46,"completion_tokens":%d,"total_tokens":%d}' % (count, count + 46)
            end += _event(room, b"", usage)
        end += b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
        head = _STREAM_HEAD + _event(room, _delta(b'"role":"assistant","content":""'))
        stream = _Stream(self._transport, head, _event(room, _delta(b'"content":" token"')), end, count)
        if self._is_prefill:
            stream.step()
        else:
            self._steps.add(stream)


def take_request(buffer: bytes | bytearray) -> tuple[bytes, int] | None:
    """Body and size of the first whole request; None: there is more to come."""
    end = buffer.find(b"\r\n\r\n")
    if end < 0:
        return None
    start = end + 4
    if _CHUNKED.search(buffer, 0, start):
        return _take_chunks(buffer, start)
    length = _LENGTH.search(buffer, 0, start)
    stop = start + (int(length.group(1)) if length else 0)
    return (bytes(buffer[start:stop]), stop) if len(buffer) >= stop else None


def _take_chunks(buffer: bytes | bytearray, at: int) -> tuple[bytes, int] | None:
    chunks: list[bytes] = []
    while (line_end := buffer.find(b"\r\n", at)) >= 0:
        size = int(buffer[at:line_end], 16)
        at = line_end + 2
        if len(buffer) < at + size + 2:
            return None
        if size == 0:
            return b"".join(chunks), at + 2
        chunks.append(bytes(buffer[at : at + size]))
        at += size + 2
    return None


async def _serve(is_prefill: bool, step_ms: float) -> None:
    steps = Steps(step_ms / 1e3)
    server = await asyncio.get_running_loop().create_server(
        lambda: Worker(is_prefill, steps), "127.0.0.1", 0, backlog=2048
    )
    await serve(server.sockets[0].getsockname()[1])


if __name__ == "__main__":
    import uvloop

    uvloop.run(_serve(sys.argv[1] == "prefill", float(sys.argv[2])))
