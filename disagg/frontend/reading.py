"""From a body's bytes to what was asked: all that needs only the body and the model's folder.

Way:   body -> [read]: JSON -> the row of its endpoint in READINGS -> checked fields -> chat template -> token ids
Out:   of a generation a CompletionRequest whose prompts are shorter than the model's context; of other endpoints what
       their row makes, an Answered for those that need no engine
Fails: BadRequest, naming the parameter

It runs in the event loop for short bodies (disagg/tokenizer/short_bodies.py), and in a reader
(disagg/frontend/readers.py) for long ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from disagg.adapters import Served
from disagg.errors import BadRequest
from disagg.fields import Body, boolean, is_larger, refuse, required
from disagg.frontend import messages_api, native_api, responses_api
from disagg.frontend.body import decode_body
from disagg.frontend.inputs import FIELDS as INPUT_KINDS
from disagg.frontend.inputs import InputsRequest, read_inputs
from disagg.frontend.parameters import CHAT, COMPLETION, check_names
from disagg.frontend.prompts import chat_ids_of, kept_of
from disagg.frontend.request_body import (
    PROMPT_TOKENS_MAX,
    CompletionRequest,
    check_model,
    other_fields,
    prompts_of,
    refuse_too_long,
)
from disagg.frontend.talk import talk_of
from disagg.frontend.tokenizing import Answered, read_detokenize, read_tokenize
from disagg.frontend.tool_choice import tool_use_of
from disagg.frontend.unknown_fields import take_unknown
from disagg.sampling import INT32_MAX
from disagg.token_ids import TokenIds, packed

if TYPE_CHECKING:
    from disagg.tokenizer.codec import Codec

T = TypeVar("T")
CARRIED_MAX = 32 << 10  # values and names of a field that the answer repeats, or that goes on with the request

Read = CompletionRequest | InputsRequest | Answered  # what a reader can send back: structs with tags


def read(data: bytes, endpoint: str, served: Served, codec: Codec, *, refuses_unknown: bool = True) -> Read:
    """`endpoint`: its word in READINGS. Data of "responses" is as `with_earlier` makes it. `refuses_unknown`:
    fields that nobody here knows are a BadRequest; else they are left out, and named in `ignored`."""
    earlier: list[dict[str, Any]] = []
    if endpoint == "responses":
        length, _, data = data.partition(b"\n")
        earlier, data = msgspec.json.decode(data[: int(length)]), data[int(length) :]
    body = decode_body(data)
    ignored = [] if refuses_unknown else take_unknown(body, endpoint)
    if endpoint == "responses":
        asked: Read = _responses(body, earlier, served, codec)
    else:
        asked = READINGS[endpoint](body, served, codec)
    if isinstance(asked, CompletionRequest) and asked.echo:
        texts = [codec.text_of(list(prompt_ids), skip_special_tokens=True) for prompt_ids in asked.prompts]
        asked = msgspec.structs.replace(asked, prompt_texts=texts)
    if isinstance(asked, CompletionRequest):
        _check_carried(asked)
    return msgspec.structs.replace(asked, ignored=ignored) if ignored else asked


def _check_carried(asked: CompletionRequest) -> None:
    """What the event loop takes over beside the prompt. Fields with limits of their own are not looked at again."""
    said = asked.said
    carried = {"chat_template_kwargs": asked.talk.variables, "input": said.get("history"), **said.get("echo", {})}
    for name, value in carried.items():
        if isinstance(value, list | dict) and is_larger(value, CARRIED_MAX):
            refuse(name, "too_many_values", f"'{name}' has more than {CARRIED_MAX} values and names")


def with_earlier(body: bytes, earlier: list[dict[str, Any]]) -> bytes:
    """A Responses body with the conversation that it goes on with."""
    said = msgspec.json.encode(earlier)
    return b"%d\n%b%b" % (len(said), said, body)


def _chat(body: Body, served: Served, codec: Codec, *, is_counted: bool = False) -> CompletionRequest:
    """`is_counted`: of a prompt that is counted alone, which may be longer than the model's context."""
    body, limit = check_names(body, CHAT), INT32_MAX if is_counted else codec.context_length
    adapter = check_model(body, served)
    required(body, "messages")
    fields, use = other_fields(body, codec.sampling_defaults, codec.vocabulary, is_chat=True), tool_use_of(body)
    kept = kept_of(body, codec.context_length, fields["max_tokens"] or 1)
    prompt_ids = _kept(chat_ids_of(body, codec, limit, use.shown), kept, "messages", limit)
    talk = talk_of(body, is_constrained=bool(fields["constrained_by"]))
    fields |= {"model": body["model"], "adapter": adapter, "tool_use": use, "talk": talk}
    return CompletionRequest(api="chat", source="messages", prompts=[prompt_ids], **fields)


def _completion(
    body: Body, served: Served, codec: Codec, defaults: Mapping[str, float] | None = None
) -> CompletionRequest:
    """`defaults`: instead of the model's."""
    body = check_names(body, COMPLETION)
    adapter = check_model(body, served)
    given, limit = required(body, "prompt"), codec.context_length
    defaults = codec.sampling_defaults if defaults is None else defaults
    fields = other_fields(body, defaults, codec.vocabulary, is_chat=False)
    kept = kept_of(body, limit, fields["max_tokens"] or 1)
    special_tokens = boolean(body, "add_special_tokens", absent=True)
    prompts, left = [], max(PROMPT_TOKENS_MAX, limit)
    for index, prompt in enumerate(given := prompts_of(given, codec.vocabulary, limit if kept is None else INT32_MAX)):
        prompt_ids = codec.text_ids(prompt, special_tokens=special_tokens) if isinstance(prompt, str) else prompt
        prompts.append(_kept(prompt_ids, kept, "prompt" if len(given) == 1 else f"prompt[{index}]", limit))
        left -= len(prompts[-1])
        if left < 0:
            what = f"the prompts have more than {max(PROMPT_TOKENS_MAX, limit)} tokens together; send several requests"
            refuse("prompt", "too_many_tokens", what)
    fields |= {"model": body["model"], "adapter": adapter}
    return CompletionRequest(api="text", source="prompt", prompts=prompts, **fields)


def _kept(prompt_ids: list[int], kept: int | None, source: str, limit: int) -> TokenIds:
    if not prompt_ids:
        refuse(source, "empty_prompt", f"'{source}' gives no token")
    if kept is not None:
        prompt_ids = prompt_ids[-kept:]
    if len(prompt_ids) >= limit:
        refuse_too_long(source, len(prompt_ids), limit)
    return packed(prompt_ids)


def _generate(body: Body, served: Served, codec: Codec) -> CompletionRequest:
    prompt_from, with_texts = native_api.prompt_logprobs_from(body), boolean(body, "return_text_in_logprobs")
    completion = native_api.completion_body(body)
    said = {"is_list": native_api.is_list(completion), "with_texts": with_texts}
    completion.setdefault("model", served.model)
    chosen = native_api.chosen_ids(body, codec.vocabulary)
    own_words = partial(native_api.own_words, body=body)
    asked = _in_words_of(own_words, lambda: _completion(completion, served, codec, {}))
    return msgspec.structs.replace(
        asked, api="generate", said=said, prompt_logprobs_from=prompt_from, chosen_ids=chosen
    )


def _responses(body: Body, earlier: list[dict[str, Any]], served: Served, codec: Codec) -> CompletionRequest:
    asked = responses_api.read(body, earlier)
    chat = _in_words_of(responses_api.own_words, lambda: _chat(asked.chat, served, codec))
    said: dict[str, Any] = {"echo": asked.echo, "history": asked.history, "stores": asked.stores}
    said |= {"summarises": asked.summarises, "seals": asked.seals}
    return msgspec.structs.replace(chat, api="responses", said=said)


def _messages(body: Body, served: Served, codec: Codec) -> CompletionRequest:
    chat = messages_api.chat_body(body)
    return msgspec.structs.replace(
        _in_words_of(messages_api.own_words, lambda: _chat(chat, served, codec)), api="messages"
    )


def _count_tokens(body: Body, served: Served, codec: Codec) -> Answered:
    chat = messages_api.chat_body(body, counts=True)
    asked = _in_words_of(messages_api.own_words, lambda: _chat(chat, served, codec, is_counted=True))
    return Answered(messages_api.tokens_counted(len(asked.prompts[0])))


def _in_words_of(own_words: Callable[[BadRequest], BadRequest], reads: Callable[[], T]) -> T:
    """A refusal speaks of the client's own fields."""
    try:
        return reads()
    except BadRequest as error:
        raise own_words(error) from error


READINGS: Mapping[str, Callable[[Body, Served, Codec], Read]] = {
    "chat": _chat,
    "text": _completion,
    "generate": _generate,
    "messages": _messages,
    "count_tokens": _count_tokens,
    **{kind: partial(read_inputs, kind) for kind in INPUT_KINDS},
    "tokenize": read_tokenize,
    "detokenize": read_detokenize,
}
