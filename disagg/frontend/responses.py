"""OpenAI's answers as bytes: whole bodies, and the chunks of a stream, which find their own way to the socket.

Way:   pieces -> [whole, Chunks] -> HTTP
Out:   what the `openai` clients expect, field for field (golden bytes in the tests)

All of a chunk that does not change over a stream is encoded once: a token costs one encoded string and one join.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from disagg.coordinator.request import FinishReason, Request
from disagg.errors import BadRequest, RequestError

if TYPE_CHECKING:
    from disagg.frontend.http1 import ChunkWriter

Kind = Literal["chat", "text"]
DONE = b"data: [DONE]\n\n"
_to_json = msgspec.json.encode
# Whole in a JSON string; to a client that ends lines by Unicode's rules (httpx, str.splitlines) the end of an event.
_LINE_ENDS = ((b"\xc2\x85", rb"\u0085"), (b"\xe2\x80\xa8", rb"\u2028"), (b"\xe2\x80\xa9", rb"\u2029"))

# kind: prefix of ids, object of a whole answer, object of a chunk
_WORDS: dict[Kind, tuple[str, str, str]] = {
    "chat": ("chatcmpl-", "chat.completion", "chat.completion.chunk"),
    "text": ("cmpl-", "text_completion", "text_completion"),
}


def encode(content: Any) -> bytes:
    """JSON, on one line for everybody."""
    data = _to_json(content)
    return data if data.isascii() else _one_line(data)


def _one_line(data: bytes) -> bytes:
    for end, escaped in _LINE_ENDS:
        if end in data:
            data = data.replace(end, escaped)
    return data


class Chunks:
    """The events of one stream. It implements disagg.coordinator.request.Output: from an engine's step to the client's
    socket, with no task in between."""

    __slots__ = ("_after", "_before", "_body", "_head", "_is_chat", "_tail", "_unfinished", "include_usage")

    def __init__(
        self, body: ChunkWriter, kind: Kind, request_id: str, created_s: int, model: str, include_usage: bool
    ) -> None:
        self._body = body
        prefix, _, chunk = _WORDS[kind]
        head = encode({"id": prefix + request_id, "object": chunk, "created": created_s, "model": model})[:-1]
        field = b'"delta":{"content":' if kind == "chat" else b'"text":'
        self.include_usage = include_usage
        self._is_chat = kind == "chat"
        self._head = b"data: " + head + b',"choices":'
        self._before = self._head + b'[{"index":0,' + field
        self._tail, self._unfinished, self._after = _ends(kind, include_usage)

    def opening(self) -> bytes:
        """The chunk that names the role; a text completion has none."""
        if not self._is_chat:
            return b""
        choice = b'[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]'
        return self._head + choice + self._tail

    def is_open(self) -> bool:
        return self._body.takes

    def put(self, text: str, token_ids: list[int]) -> None:
        if event := self.piece(text, token_ids):
            self._body.write(event)

    def piece(self, text: str, token_ids: list[int]) -> bytes:
        """Empty when it has nothing to show."""
        if not text:
            return b""
        data = _to_json(text)
        if not text.isascii() and ("\u2028" in text or "\u2029" in text or "\x85" in text):
            data = _one_line(data)
        return self._before + data + self._after

    def finish(self, reason: FinishReason) -> bytes:
        return self._head + b"[" + self._finished_choice(reason) + b"}]" + self._tail

    def usage(self, usage: dict[str, Any]) -> bytes:
        return self._head + b'[],"usage":' + encode(usage) + b"}\n\n"

    def _finished_choice(self, reason: FinishReason) -> bytes:
        """Without its last bracket."""
        field = b'"delta":{}' if self._is_chat else b'"text":""'
        return b'{"index":0,' + field + b',"logprobs":null,"finish_reason":' + encode(reason)


@cache
def _ends(kind: Kind, include_usage: bool) -> tuple[bytes, bytes, bytes]:
    """The same objects for all streams: what every token touches stays in the processor's cache."""
    tail = (b',"usage":null}' if include_usage else b"}") + b"\n\n"
    unfinished = (b"}" if kind == "chat" else b"") + b',"logprobs":null,"finish_reason":null'
    return tail, unfinished, unfinished + b"}]" + tail


class ChunksWithMore(Chunks):
    """What vLLM has beside OpenAI's fields, where vLLM has it.

    `return_token_ids`: each choice holds the ids that came with it, also those whose text is still held back or is
    none; the prompt's stand once, in the first event of a chat, in the first choice of a text.
    `continuous_usage_stats`: each event holds the usage so far.
    """

    __slots__ = ("_continuous_usage", "_prompt", "_request", "_with_ids")

    def __init__(
        self,
        body: ChunkWriter,
        kind: Kind,
        request_id: str,
        created_s: int,
        model: str,
        include_usage: bool,
        request: Request,
        *,
        token_ids: bool,
        continuous_usage: bool,
    ) -> None:
        super().__init__(body, kind, request_id, created_s, model, include_usage)
        self._request, self._with_ids, self._continuous_usage = request, token_ids, continuous_usage
        self._prompt = b',"prompt_token_ids":' + encode(request.prompt_ids) if token_ids else b""

    def opening(self) -> bytes:
        chunk = super().opening()
        return chunk.removesuffix(self._tail) + self._take_prompt() + self._end() if chunk else b""

    def piece(self, text: str, token_ids: list[int]) -> bytes:
        if not text and not (token_ids and self._with_ids):
            return b""
        return self._before + encode(text) + self._unfinished + self._ids(token_ids)

    def finish(self, reason: FinishReason) -> bytes:
        return self._head + b"[" + self._finished_choice(reason) + self._ids([])

    def _ids(self, token_ids: list[int]) -> bytes:
        ids = b',"token_ids":' + encode(token_ids) if self._with_ids else b""
        return self._take_prompt() + ids + b"}]" + self._end()

    def _end(self) -> bytes:
        return b',"usage":' + encode(self._request.usage) + b"}\n\n" if self._continuous_usage else self._tail

    def _take_prompt(self) -> bytes:
        prompt, self._prompt = self._prompt, b""
        return prompt


def whole(
    kind: Kind, request: Request, created_s: int, model: str, text: str, reason: FinishReason, with_token_ids: bool
) -> bytes:
    """`with_token_ids`: for `return_token_ids`, where vLLM has them."""
    prefix, name, _ = _WORDS[kind]
    said: dict[str, Any] = (
        {"message": {"role": "assistant", "content": text, "refusal": None}} if kind == "chat" else {"text": text}
    )
    choice = {"index": 0, **said, "logprobs": None, "finish_reason": reason}
    answer = {"id": prefix + request.id, "object": name, "created": created_s, "model": model, "choices": [choice]}
    if with_token_ids:
        (answer if kind == "chat" else choice)["prompt_token_ids"] = request.prompt_ids
        choice["token_ids"] = request.emitted_ids
    return encode({**answer, "usage": request.usage})


def error_body(error: RequestError) -> bytes:
    """`where` names hosts and rooms: it stays in our logs."""
    param = error.param if isinstance(error, BadRequest) else None
    return encode({"error": {"message": error.message, "type": error.kind, "param": param, "code": error.code}})


def error_event(error: RequestError) -> bytes:
    return b"data: " + error_body(error) + b"\n\n"


def model_body(model: str, created_s: int, context_length: int) -> dict[str, Any]:
    """`max_model_len` is vLLM's and SGLang's addition, which clients read to size their prompts."""
    return {
        "id": model,
        "object": "model",
        "created": created_s,
        "owned_by": "disagg",
        "max_model_len": context_length,
    }
