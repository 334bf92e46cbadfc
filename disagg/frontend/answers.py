"""OpenAI's answers as bytes: whole bodies, and the chunks of a stream.

Way:   pieces -> [Chunks, body_of] -> HTTP
Out:   what the `openai` clients expect, field for field (golden bytes in the tests)

All of a chunk that does not change over a stream is encoded once: a token costs one encoded string and one join.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from disagg.coordinator.request import FinishReason
from disagg.errors import BadRequest, RequestError

Kind = Literal["chat", "text"]
DONE = b"data: [DONE]\n\n"
encode = msgspec.json.encode

# kind: prefix of ids, object of a whole answer, object of a chunk
_WORDS: dict[Kind, tuple[str, str, str]] = {
    "chat": ("chatcmpl-", "chat.completion", "chat.completion.chunk"),
    "text": ("cmpl-", "text_completion", "text_completion"),
}


class Chunks:
    """The events of one stream."""

    def __init__(self, kind: Kind, request_id: str, created_s: int, model: str, include_usage: bool) -> None:
        prefix, _, chunk = _WORDS[kind]
        head = encode({"id": prefix + request_id, "object": chunk, "created": created_s, "model": model})[:-1]
        usage = b',"usage":null}' if include_usage else b"}"
        field = b'"delta":{"content":' if kind == "chat" else b'"text":'
        self.include_usage = include_usage
        self._is_chat = kind == "chat"
        self._head = b"data: " + head + b',"choices":'
        self._before = self._head + b'[{"index":0,' + field
        self._tail = usage + b"\n\n"
        self._after = (b"}" if kind == "chat" else b"") + b',"logprobs":null,"finish_reason":null}]' + self._tail

    def opening(self) -> bytes:
        """The chunk that names the role; a text completion has none."""
        if not self._is_chat:
            return b""
        choice = b'[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]'
        return self._head + choice + self._tail

    def text(self, text: str) -> bytes:
        return self._before + encode(text) + self._after

    def finish(self, reason: FinishReason) -> bytes:
        field = b'"delta":{}' if self._is_chat else b'"text":""'
        ending = b',"logprobs":null,"finish_reason":' + encode(reason) + b"}]"
        return self._head + b'[{"index":0,' + field + ending + self._tail

    def usage(self, usage: dict[str, Any]) -> bytes:
        return self._head + b'[],"usage":' + encode(usage) + b"}\n\n"


def whole(
    kind: Kind,
    request_id: str,
    created_s: int,
    model: str,
    text: str,
    reason: FinishReason,
    usage: dict[str, Any],
    token_ids: list[int] | None = None,
) -> bytes:
    prefix, name, _ = _WORDS[kind]
    said: dict[str, Any] = (
        {"message": {"role": "assistant", "content": text, "refusal": None}} if kind == "chat" else {"text": text}
    )
    if token_ids is not None:
        said["token_ids"] = token_ids
    return encode(
        {
            "id": prefix + request_id,
            "object": name,
            "created": created_s,
            "model": model,
            "choices": [{"index": 0, **said, "logprobs": None, "finish_reason": reason}],
            "usage": usage,
        }
    )


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
