"""Where an answer goes as it comes: a stream's chunks to the client's socket, or a text that is collected.

Way:   decode leg -> [Chunks, WholeText] (each a disagg.coordinator.sink.Sink) -> ChunkWriter; or responses.whole
Out:   what the `openai` clients expect, field for field (golden bytes in the tests)
Owns:  that the head and the role go with the first text, and the end with the last: a write for each piece

All of a chunk that does not change over a stream is encoded once: a token costs one encoded string and one join.
"""

from __future__ import annotations

from functools import cache

import msgspec

from disagg.coordinator.request import FinishReason, Request
from disagg.frontend.exchange import Exchange
from disagg.frontend.request_body import CompletionRequest
from disagg.frontend.responses import WORDS, Kind, encode, one_line

DONE = b"data: [DONE]\n\n"
_to_json = msgspec.json.encode


class WholeText:
    """Collects the whole text, for an answer that is not streamed."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self.finish_reason: FinishReason | None = None

    @property
    def text(self) -> str:
        return "".join(self._texts)

    def is_open(self) -> bool:
        return True

    async def opens(self) -> None:
        pass

    def put(self, text: str, _token_ids: list[int]) -> None:
        self._texts.append(text)

    def end(self, text: str, _token_ids: list[int], reason: FinishReason) -> None:
        self._texts.append(text)
        self.finish_reason = reason


class Chunks:
    """The events of one stream, from an engine's step to the client's socket with no task in between."""

    __slots__ = (
        "_after", "_asked", "_before", "_body", "_exchange", "_head", "_is_begun", "_is_chat", "_opening", "_request",
        "_tail", "_unfinished",
    )  # fmt: skip

    def __init__(
        self, exchange: Exchange, kind: Kind, request: Request, created_s: int, model: str, asked: CompletionRequest
    ) -> None:
        self._exchange, self._body, self._request = exchange, exchange.call.chunk_writer, request
        prefix, _, chunk = WORDS[kind]
        head = encode({"id": prefix + request.id, "object": chunk, "created": created_s, "model": model})[:-1]
        field = b'"delta":{"content":' if kind == "chat" else b'"text":'
        self._asked, self._is_chat = asked, kind == "chat"
        self._head = b"data: " + head + b',"choices":'
        self._before = self._head + b'[{"index":0,' + field
        self._tail, self._unfinished, self._after = _ends(kind, asked.include_usage)
        self._is_begun = False
        self._opening = self._first_chunk()

    def is_open(self) -> bool:
        return self._body.takes

    async def opens(self) -> None:
        await self._exchange.call.writable()

    def put(self, text: str, token_ids: list[int]) -> None:
        event = self._piece(text, token_ids)
        if self._is_begun:
            if event:
                self._body.write(event)
        elif begin := self._opening + event:
            self._is_begun = True
            self._opening = b""
            self._exchange.write_events(begin)

    def end(self, text: str, token_ids: list[int], reason: FinishReason) -> None:
        last = self._opening + self._piece(text, token_ids) + self._finish(reason)
        if self._asked.include_usage:
            last += self._head + b'[],"usage":' + encode(self._request.usage) + b"}\n\n"
        self._exchange.write_events(last + DONE, last=True)

    def _first_chunk(self) -> bytes:
        """The chunk that names the role; a text completion has none."""
        if not self._is_chat:
            return b""
        choice = b'[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]'
        return self._head + choice + self._tail

    def _piece(self, text: str, token_ids: list[int]) -> bytes:
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
        return choice + self._close([])

    def _close(self, _token_ids: list[int]) -> bytes:
        """From a choice's last field to the event's end."""
        return b"}]" + self._tail


@cache
def _ends(kind: Kind, include_usage: bool) -> tuple[bytes, bytes, bytes]:
    """The same objects for all streams: what every token touches stays in the processor's cache."""
    tail = (b',"usage":null}' if include_usage else b"}") + b"\n\n"
    unfinished = (b"}" if kind == "chat" else b"") + b',"logprobs":null,"finish_reason":null'
    return tail, unfinished, unfinished + b"}]" + tail


class ChunksWithMore(Chunks):
    """Chunks with vLLM's additional fields, in the places where vLLM has them.

    `return_token_ids`: each choice holds the ids that came with it, also those whose text is still held back or is
    none; the prompt's stand once, in the first event of a chat, in the first choice of a text.
    `continuous_usage_stats`: each event holds the usage so far.
    """

    __slots__ = ("_prompt",)

    def _first_chunk(self) -> bytes:
        self._prompt = (
            b',"prompt_token_ids":' + encode(self._request.prompt_ids) if self._asked.return_token_ids else b""
        )
        chunk = super()._first_chunk()
        return chunk.removesuffix(self._tail) + self._take_prompt() + self._end() if chunk else b""

    def _piece(self, text: str, token_ids: list[int]) -> bytes:
        if not text and not (token_ids and self._asked.return_token_ids):
            return b""
        return self._before + encode(text) + self._unfinished + self._close(token_ids)

    def _close(self, token_ids: list[int]) -> bytes:
        ids = b',"token_ids":' + encode(token_ids) if self._asked.return_token_ids else b""
        return self._take_prompt() + ids + b"}]" + self._end()

    def _end(self) -> bytes:
        return b',"usage":' + encode(self._request.usage) + b"}\n\n" if self._asked.continuous_usage else self._tail

    def _take_prompt(self) -> bytes:
        prompt, self._prompt = self._prompt, b""
        return prompt
