"""The fields of a JSON body of /v1/chat/completions or /v1/completions as plain, checked data.

Way:   body -> reading.py -> [prompt_of, other_fields] -> CompletionRequest -> Request
In:    a decoded body whose names are known; nothing in them is trusted
Out:   every field in its range; only lengths in tokens are still to be checked
Fails: BadRequest, naming the parameter
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

import msgspec

from disagg.errors import BadRequest
from disagg.fields import Body, boolean, integer, refuse, required, strings, typed, whole, wrong_type
from disagg.sampling import sampling_of

INT32_MAX = 2**31 - 1
STOP_STRINGS_MAX = 16
STOP_CHARACTERS_MAX = 256
STREAM_OPTIONS = frozenset({"include_usage", "continuous_usage_stats", "include_obfuscation"})


class CompletionRequest(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    source: str  # the parameter that held the prompt: messages or prompt
    prompt_ids: list[int]
    stream: bool
    include_usage: bool
    continuous_usage: bool  # vLLM's addition: the usage so far in each chunk
    return_token_ids: bool  # vLLM's addition: the prompt's and the answer's token ids beside the text
    max_tokens: int | None  # output; None: as many as the context leaves
    max_tokens_name: str
    stop: tuple[str, ...]
    sampling: dict[str, Any]


def check_model(body: Body, model: str) -> None:
    asked = typed(str, required(body, "model"), "model")
    if asked != model:
        raise no_such_model(asked, model)


def no_such_model(asked: str, model: str) -> BadRequest:
    what = f"there is no model '{asked[:100]}' here; this is '{model}'"
    return BadRequest("model", "model_not_found", what, http_status=404)


def other_fields(body: Body, defaults: Mapping[str, float]) -> dict[str, Any]:
    """All of a CompletionRequest but its prompt."""
    stream = boolean(body, "stream")
    max_tokens, max_tokens_name = _max_tokens(body)
    include_usage, continuous_usage = _usage_options(body, stream)
    return {
        "stream": stream,
        "include_usage": include_usage,
        "continuous_usage": continuous_usage,
        "return_token_ids": boolean(body, "return_token_ids"),
        "max_tokens": max_tokens,
        "max_tokens_name": max_tokens_name,
        "stop": strings(body, "stop", STOP_STRINGS_MAX, STOP_CHARACTERS_MAX),
        "sampling": sampling_of(body, defaults),
    }


def _max_tokens(body: Body) -> tuple[int | None, str]:
    """`max_tokens` is the older name of max_completion_tokens; both together must be equal, else BadRequest."""
    old, new = integer(body, "max_tokens", 1, INT32_MAX), integer(body, "max_completion_tokens", 1, INT32_MAX)
    if old is not None and new is not None and old != new:
        refuse("max_tokens", "invalid_value", "'max_tokens' and 'max_completion_tokens' differ; give one of them")
    return (old, "max_tokens") if new is None else (new, "max_completion_tokens")


def _usage_options(body: Body, stream: bool) -> tuple[bool, bool]:
    """(whether a last chunk holds the usage, whether each chunk holds the usage so far). Raises BadRequest."""
    options = body.get("stream_options")
    if options is None:
        return False, False
    for name, value in typed(dict, options, "stream_options").items():
        if value is None:
            continue
        here = f"stream_options.{name[:100]}"
        if name not in STREAM_OPTIONS:
            refuse(here, "unknown_parameter", f"'{here}' is not supported here")
        if type(value) is not bool:
            wrong_type(here, "true or false", value)
        if value and name == "include_obfuscation":
            refuse(here, "unsupported_parameter", f"'{here}' is not supported here; leave it out")
        if value and not stream:
            refuse("stream_options", "invalid_value", "'stream_options' is only for requests with 'stream': true")
    return options.get("include_usage") is True, options.get("continuous_usage_stats") is True


def refuse_too_long(source: str, prompt_tokens: int, limit: int, whose: str = "the model's context") -> NoReturn:
    what = f"the prompt has {prompt_tokens} tokens; {whose} is {limit}, answer included"
    refuse(source, "context_length_exceeded", what)


def prompt_of(value: Any, vocabulary: int, context_length: int) -> str | list[int]:
    """One prompt: a text or its token ids, or a list that holds one of the two and nothing else."""
    here = "prompt"
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str | list):
        value, here = value[0], "prompt[0]"
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        wrong_type(here, "a string or a list of token ids", value)
    if not value:
        refuse(here, "empty_array", f"'{here}' is empty")
    if len(value) >= context_length and type(value[0]) is int:  # before each id is looked at
        refuse_too_long("prompt", len(value), context_length)
    # All at once, in C: one by one, 8,000 ids take a millisecond of everybody's time.
    if set(map(type, value)) != {int} or min(value) < 0 or max(value) >= vocabulary:
        return _ids_one_by_one(value, here, vocabulary)
    return value


def _ids_one_by_one(ids: list[Any], here: str, vocabulary: int) -> list[int]:
    checked = []
    for index, given in enumerate(ids):
        if isinstance(given, str | list) and here == "prompt":
            what = f"'prompt' holds {len(ids)} prompts: several in one request are not supported yet; send each alone"
            refuse("prompt", "unsupported_parameter", what)
        token_id = whole(given)
        if token_id is None:
            wrong_type(f"{here}[{index}]", "a token id", given)
        if not 0 <= token_id < vocabulary:
            what = f"'{here}[{index}]' is {token_id}; token ids of this model are 0 to {vocabulary - 1}"
            refuse(f"{here}[{index}]", "invalid_token_id", what)
        checked.append(token_id)
    return checked
