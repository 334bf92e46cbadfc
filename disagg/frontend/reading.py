"""From a body's bytes to what was asked: all that needs only the body and the model's folder.

Way:   body -> [read]: JSON -> the row of its endpoint in READINGS -> checked fields -> chat template -> token ids
Out:   of a generation a CompletionRequest whose prompt is shorter than the model's context; of other endpoints what
       their row makes, an Answered for those that need no engine
Fails: BadRequest, naming the parameter

It runs in the event loop for short bodies, and in a reader (disagg/frontend/readers.py) for long ones: the body's bytes
decide, since a message, a part of one or a list in `metadata` costs as much as hundreds of letters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from disagg.fields import Body, boolean, refuse, required
from disagg.frontend.body import decode_body
from disagg.frontend.parameters import CHAT, COMPLETION, check_names
from disagg.frontend.prompts import chat_ids_of, kept_of
from disagg.frontend.request_body import (
    INT32_MAX,
    CompletionRequest,
    check_model,
    other_fields,
    prompt_of,
    refuse_too_long,
)
from disagg.frontend.tokenizing import Answered, read_detokenize, read_tokenize
from disagg.tokenizer.codec import Codec

# What may run in the event loop: below an engine's step of some 5 ms, whatever it holds.
SHORT_BYTES = 32 << 10
SHORT_BYTES_SLOW = 8 << 10  # where text is tokenised four times slower (disagg/tokenizer/encoder.py)
SHORT_BRACES = 500  # a message without content is 28 bytes, and costs as much as a thousand letters

Read = CompletionRequest | Answered  # what a reader can send back: structs with tags


def is_short(data: bytes, codec: Codec) -> bool:
    limit_bytes = SHORT_BYTES if codec.encoder.is_fast else SHORT_BYTES_SLOW
    return len(data) <= limit_bytes and data.count(b"{") <= SHORT_BRACES


def read(data: bytes, endpoint: str, model: str, codec: Codec) -> Read:
    """`endpoint`: its word in READINGS."""
    return READINGS[endpoint](decode_body(data), model, codec)


def _chat(body: Body, model: str, codec: Codec) -> CompletionRequest:
    body = check_names(body, CHAT)
    check_model(body, model)
    required(body, "messages")
    fields = other_fields(body, codec.sampling_defaults)
    kept = kept_of(body, codec.context_length, fields["max_tokens"] or 1)
    prompt_ids = _kept(chat_ids_of(body, codec), kept, "messages", codec.context_length)
    return CompletionRequest(source="messages", prompt_ids=prompt_ids, **fields)


def _completion(body: Body, model: str, codec: Codec) -> CompletionRequest:
    body = check_names(body, COMPLETION)
    check_model(body, model)
    given, limit = required(body, "prompt"), codec.context_length
    fields = other_fields(body, codec.sampling_defaults)
    kept = kept_of(body, limit, fields["max_tokens"] or 1)
    special_tokens = boolean(body, "add_special_tokens", absent=True)
    prompt = prompt_of(given, codec.vocabulary, limit if kept is None else INT32_MAX)
    prompt_ids = codec.text_ids(prompt, special_tokens=special_tokens) if isinstance(prompt, str) else prompt
    return CompletionRequest(source="prompt", prompt_ids=_kept(prompt_ids, kept, "prompt", limit), **fields)


def _kept(prompt_ids: list[int], kept: int | None, source: str, limit: int) -> list[int]:
    if not prompt_ids:
        refuse(source, "empty_prompt", f"'{source}' gives no token")
    if kept is not None:
        prompt_ids = prompt_ids[-kept:]
    if len(prompt_ids) >= limit:
        refuse_too_long(source, len(prompt_ids), limit)
    return prompt_ids


READINGS: Mapping[str, Callable[[Body, str, Codec], Read]] = {
    "chat": _chat,
    "text": _completion,
    "tokenize": read_tokenize,
    "detokenize": read_detokenize,
}
