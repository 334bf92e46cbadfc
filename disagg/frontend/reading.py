"""From a body's bytes to a checked request with its token ids: all that needs only the body and the model's folder.

Way:   body -> [read]: JSON -> checked fields -> chat template -> token ids
Out:   CompletionRequest whose prompt is shorter than the model's context; InputsRequest (inputs.py) of the same kind
Fails: BadRequest, naming the parameter

It runs in the event loop for short bodies, and in a reader (disagg/frontend/readers.py) for long ones: the body's bytes
decide, since a message, a part of one or a list in `metadata` costs as much as hundreds of letters.
"""

from __future__ import annotations

from disagg.fields import boolean, refuse, required
from disagg.frontend.body import decode_body
from disagg.frontend.inputs import FIELDS as INPUT_KINDS
from disagg.frontend.inputs import InputKind, InputsRequest, read_inputs
from disagg.frontend.parameters import CHAT, COMPLETION, check_names, template_variables
from disagg.frontend.request_body import (
    CompletionRequest,
    check_model,
    messages_of,
    other_fields,
    prompts_of,
    refuse_too_long,
)
from disagg.frontend.responses import Kind
from disagg.tokenizer.codec import Codec

BodyKind = Kind | InputKind
AnyRequest = CompletionRequest | InputsRequest

# What may run in the event loop: below an engine's step of some 5 ms, whatever it holds.
SHORT_BYTES = 32 << 10
SHORT_BYTES_SLOW = 8 << 10  # where text is tokenised four times slower (disagg/tokenizer/encoder.py)
SHORT_TEXTS = 500  # of a batch: each is tokenised by itself
SHORT_BRACES = 500  # a message without content is 28 bytes, and costs as much as a thousand letters


def is_short(data: bytes, codec: Codec, kind: BodyKind = "text") -> bool:
    limit_bytes = SHORT_BYTES if codec.encoder.is_fast else SHORT_BYTES_SLOW
    if len(data) > limit_bytes or data.count(b"{") > SHORT_BRACES:
        return False
    return kind not in INPUT_KINDS or data.count(b'"') // 2 <= SHORT_TEXTS


def read(data: bytes, kind: BodyKind, model: str, codec: Codec) -> AnyRequest:
    if kind == "chat" or kind == "text":  # mypy follows this one
        return _read_completion(data, kind, model, codec)
    return read_inputs(data, kind, model, codec)


def _read_completion(data: bytes, kind: Kind, model: str, codec: Codec) -> CompletionRequest:
    is_chat, limit = kind == "chat", codec.context_length
    body = check_names(decode_body(data), CHAT if is_chat else COMPLETION)
    check_model(body, model)
    source = "messages" if is_chat else "prompt"
    given = required(body, source)
    others = other_fields(body, codec.sampling_defaults, codec.vocabulary, is_chat=is_chat)
    # Put around the prompt by the tokenizer: not where a template has written them.
    special_tokens = boolean(body, "add_special_tokens", absent=not is_chat)
    if is_chat:
        messages, variables = messages_of(given, limit), template_variables(body)
        prompts = [codec.chat_ids(messages, variables, special_tokens=special_tokens)]
    else:
        prompts = [
            codec.text_ids(prompt, special_tokens=special_tokens) if isinstance(prompt, str) else prompt
            for prompt in prompts_of(given, codec.vocabulary, limit)
        ]
    for index, prompt_ids in enumerate(prompts):
        here = source if len(prompts) == 1 else f"{source}[{index}]"
        if not prompt_ids:
            refuse(here, "empty_prompt", f"'{here}' gives no token")
        if len(prompt_ids) >= limit:
            refuse_too_long(here, len(prompt_ids), limit)
    return CompletionRequest(source=source, prompts=prompts, **others)
