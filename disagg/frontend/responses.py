"""OpenAI's answers as bytes: whole bodies, and errors. (The chunks of a stream are in sinks.py.)

Way:   an answer, or an error -> [whole, error_body] -> HTTP
Out:   what the `openai` clients expect, field for field (golden bytes in the tests)
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from disagg.coordinator.request import FinishReason, Request
from disagg.errors import BadRequest, RequestError

Kind = Literal["chat", "text"]
# Whole in a JSON string; to a client that ends lines by Unicode's rules (httpx, str.splitlines) the end of an event.
_LINE_ENDS = ((b"\xc2\x85", rb"\u0085"), (b"\xe2\x80\xa8", rb"\u2028"), (b"\xe2\x80\xa9", rb"\u2029"))

# kind: prefix of ids, object of a whole answer, object of a chunk
WORDS: dict[Kind, tuple[str, str, str]] = {
    "chat": ("chatcmpl-", "chat.completion", "chat.completion.chunk"),
    "text": ("cmpl-", "text_completion", "text_completion"),
}


def encode(content: Any) -> bytes:
    """JSON, on one line for everybody."""
    data = msgspec.json.encode(content)
    return data if data.isascii() else one_line(data)


def one_line(data: bytes) -> bytes:
    for end, escaped in _LINE_ENDS:
        if end in data:
            data = data.replace(end, escaped)
    return data


def whole(
    kind: Kind, request: Request, created_s: int, model: str, text: str, reason: FinishReason, with_token_ids: bool
) -> bytes:
    """`with_token_ids`: for `return_token_ids`, where vLLM has them."""
    prefix, name, _ = WORDS[kind]
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
