"""From a body's bytes to a checked request with its token ids: all that needs only the body and the model's folder.

Way:   body -> [read]: JSON -> CompletionRequest -> chat template -> token ids
Out:   CompletionRequest whose prompt is a list of ids, shorter than the model's context
Fails: BadRequest, naming the parameter

It runs in the event loop for short bodies, and in a reader (disagg/frontend/readers.py) for long ones: the body's bytes
decide, since a message, a part of one or a list in `metadata` costs as much as hundreds of letters.
"""

from __future__ import annotations

import msgspec

from disagg.fields import refuse
from disagg.frontend.request_body import CompletionRequest, parse_chat, parse_completion, refuse_too_long
from disagg.frontend.responses import Kind
from disagg.tokenizer.codec import Codec

# What may run in the event loop: below an engine's step of some 5 ms, whatever it holds.
SHORT_BYTES = 32 << 10
SHORT_BYTES_SLOW = 8 << 10  # where text is tokenised four times slower (disagg/tokenizer/encoder.py)
SHORT_BRACES = 500  # a message without content is 28 bytes, and costs as much as a thousand letters


def is_short(data: bytes, codec: Codec) -> bool:
    limit_bytes = SHORT_BYTES if codec.encoder.is_fast else SHORT_BYTES_SLOW
    return len(data) <= limit_bytes and data.count(b"{") <= SHORT_BRACES


def read(data: bytes, kind: Kind, model: str, codec: Codec) -> CompletionRequest:
    if kind == "chat":
        asked = parse_chat(data, model, codec.sampling_defaults, codec.context_length)
    else:
        asked = parse_completion(data, model, codec.sampling_defaults, codec.context_length, codec.vocabulary)
    prompt_ids = _prompt_ids(asked, codec)
    if not prompt_ids:
        refuse(asked.source, "empty_prompt", f"'{asked.source}' gives no token")
    if len(prompt_ids) >= codec.context_length:
        refuse_too_long(asked.source, len(prompt_ids), codec.context_length)
    return msgspec.structs.replace(asked, messages=[], template_variables={}, prompt=prompt_ids)


def _prompt_ids(asked: CompletionRequest, codec: Codec) -> list[int]:
    if asked.source == "messages":
        return codec.chat_ids(asked.messages, asked.template_variables, special_tokens=asked.special_tokens)
    if isinstance(asked.prompt, str):
        return codec.text_ids(asked.prompt, special_tokens=asked.special_tokens)
    return asked.prompt
