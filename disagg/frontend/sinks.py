"""The short way of a stream that is one text and nothing else: chunks to the client's socket as tokens come.

Way:   decode leg -> [Chunks] (a disagg.coordinator.sink.Sink) -> ChunkWriter. All other answers: choices.py
Out:   what the `openai` clients expect, field for field (golden bytes in the tests)
Owns:  that the head and the role go with the first text, and the end with the last: a write for each piece

All of a chunk that does not change over a stream is encoded once: a token costs one encoded string and one join.
"""

from __future__ import annotations

from functools import cache

import msgspec

from disagg.coordinator.request import FinishReason, Request
from disagg.frontend.completion_form import DONE
from disagg.frontend.exchange import Exchange
from disagg.frontend.request_body import CompletionRequest
from disagg.frontend.responses import WORDS, Kind, encode, one_line

_to_json = msgspec.json.encode


class Chunks:
    """The events of one stream, from an engine's step to the client's socket with no task in between."""

    __slots__ = (
        "_after", "_asked", "_before", "_body", "_exchange", "_head", "_is_begun", "_is_chat", "_opening", "_request",
        "_tail",
    )  # fmt: skip

    def __init__(
        self, exchange: Exchange, request: Request, created_s: int, model: str, asked: CompletionRequest
    ) -> None:
        kind: Kind = "chat" if asked.api == "chat" else "text"
        self._exchange, self._body, self._request = exchange, exchange.call.chunk_writer, request
        prefix, _, chunk = WORDS[kind]
        head = encode({"id": prefix + request.id, "object": chunk, "created": created_s, "model": model})[:-1]
        field = b'"delta":{"content":' if kind == "chat" else b'"text":'
        self._asked, self._is_chat = asked, kind == "chat"
        self._head = b"data: " + head + b',"choices":'
        self._before = self._head + b'[{"index":0,' + field
        self._tail, self._after = _ends(kind, asked.include_usage)
        self._is_begun = False
        self._opening = self._first_chunk()

    def is_open(self) -> bool:
        return self._body.takes

    async def opens(self) -> None:
        await self._exchange.call.writable()

    def put(self, text: str, _token_ids: list[int]) -> None:
        event = self._piece(text)
        if self._is_begun:
            if event:
                self._body.write(event)
        elif begin := self._opening + event:
            self._is_begun = True
            self._opening = b""
            self._exchange.write_events(begin)

    def end(self, text: str, _token_ids: list[int], reason: FinishReason) -> None:
        last = self._opening + self._piece(text) + self._finish(reason)
        if self._asked.include_usage:
            last += self._head + b'[],"usage":' + encode(self._request.usage) + b"}\n\n"
        self._exchange.write_events(last + DONE, last=True)

    def forgets(self) -> bool:
        return False

    def _first_chunk(self) -> bytes:
        """The chunk that names the role; a text completion has none."""
        if not self._is_chat:
            return b""
        choice = b'[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]'
        return self._head + choice + self._tail

    def _piece(self, text: str) -> bytes:
        """Empty when it has nothing to show."""
        if not text:
            return b""
        data = _to_json(text)
        if not text.isascii() and ("\u2028" in text or "\u2029" in text or "\x85" in text):
            data = one_line(data)
        return self._before + data + self._after

    def _finish(self, reason: FinishReason) -> bytes:
        field = b'"delta":{}' if self._is_chat else b'"text":""'
        choice = self._head + b'[{"index":0,' + field + b',"logprobs":null,"finish_reason":' + encode(reason)
        return choice + b',"matched_stop":' + encode(self._request.matched_stop) + b"}]" + self._tail


@cache
def _ends(kind: Kind, include_usage: bool) -> tuple[bytes, bytes]:
    """The same objects for all streams: what every token touches stays in the processor's cache."""
    tail = (b',"usage":null}' if include_usage else b"}") + b"\n\n"
    return tail, (b"}" if kind == "chat" else b"") + b',"logprobs":null,"finish_reason":null}]' + tail
