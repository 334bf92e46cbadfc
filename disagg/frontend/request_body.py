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

from disagg.adapters import Served
from disagg.coordinator.wishes import PRIORITY_MAX
from disagg.errors import BadRequest
from disagg.fields import Body, boolean, integer, refuse, required, strings, token_ids, typed, wrong_type
from disagg.frontend.cache_salt import salt_of
from disagg.frontend.constraints import constraint_of
from disagg.frontend.talk import Talk
from disagg.frontend.tool_choice import ToolUse
from disagg.sampling import INT32_MAX, sampling_of
from disagg.token_ids import TokenIds

N_MAX = 32
PROMPTS_MAX = 256
PROMPT_TOKENS_MAX = 1 << 20  # of all prompts together, or the model's context where that is more: 50 ms of the loop
SAMPLES_MAX = 256  # of all prompts together
TOP_LOGPROBS_MAX = 20  # as OpenAI's; more than 128 would end a prefill engine's scheduler
STOP_STRINGS_MAX = 16
STOP_CHARACTERS_MAX = 256
NAMES_TOLD = 5  # of adapters, in an error
STREAM_OPTIONS = frozenset({"include_usage", "continuous_usage_stats", "include_obfuscation"})


class CompletionRequest(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """`n` answers to each prompt; `best_of` are made of each, and the likeliest `n` of them returned."""

    api: str  # whose words the answer speaks: a key of FORMS (forms.py)
    source: str  # the parameter that held the prompts: messages or prompt
    prompts: list[TokenIds]
    n: int
    best_of: int
    echo: bool  # the answer begins with its prompt
    logprobs: int | None  # how many of the likeliest tokens beside each token's own; None: no logprobs
    stream: bool
    include_usage: bool
    continuous_usage: bool  # vLLM's addition: the usage so far in each chunk
    return_token_ids: bool  # vLLM's addition: the prompt's and the answer's token ids beside the text
    max_tokens: int | None  # output; None: samples.py says how many. 0: the prompt alone, to be echoed
    max_tokens_name: str
    stop: tuple[str, ...]
    sampling: dict[str, Any]
    prompt_logprobs_from: int | None = None  # the first token of the prompt whose logprob is asked for
    prompt_logprobs: int | None = None  # vLLM's: how many of the likeliest beside each token of the prompt
    chosen_ids: list[int] = []  # SGLang's token_ids_logprob: their logprobs in the place of each token
    tool_use: ToolUse = ToolUse()
    talk: Talk = Talk()
    prompt_texts: list[str] = []  # where the answer echoes them
    ignored: list[str] = []  # fields of the body that nobody here knows
    said: dict[str, Any] = {}  # what else this API's answer repeats or depends on
    constrained_by: str = ""  # the field that says what the answer must look like; `sampling` has it for the engine
    shows_stop: bool = False  # the stop string that ends the text, or the stop token, is a part of it
    shows_special: bool = False  # special tokens leave text
    model: str = ""  # as it was asked for; the answer says the same
    adapter: str = ""  # what that means; empty: the model as it is
    salt: str = ""  # it shares cached KV with requests that have the same one (cache_salt.py)
    priority: int = 0
    session: str = ""  # requests with the same prompt_cache_key go on with one another

    @property
    def is_plain(self) -> bool:
        """Whether the answer is one text and nothing else."""
        has_more = self.echo or self.return_token_ids or self.continuous_usage or self.logprobs is not None
        has_more = has_more or self.prompt_logprobs is not None
        is_short = self.api in ("chat", "text") and not self.tool_use.is_active
        return is_short and len(self.prompts) == self.best_of == 1 and not has_more


def check_model(body: Body, served: Served) -> str:
    """The adapter that the body names, as the model, behind the model's name, or in SGLang's `lora_path`; "": none."""
    asked = typed(str, required(body, "model"), "model")
    adapter = served.adapter_of(asked)
    if adapter is None:
        raise no_such_model(asked, served)
    named = _lora_path(body.get("lora_path"))
    if named and named not in served.adapters:
        what = f"there is no adapter '{named[:100]}' here; {_there(served)}"
        raise BadRequest("lora_path", "model_not_found", what, http_status=404)
    if named and adapter and named != adapter:
        refuse("lora_path", "invalid_value", "'model' and 'lora_path' name two adapters; a request has one")
    return adapter or named


def no_such_model(asked: str, served: Served) -> BadRequest:
    what = f"there is no model '{asked[:100]}' here; {_there(served)}"
    return BadRequest("model", "model_not_found", what, http_status=404)


def _there(served: Served) -> str:
    names = sorted(served.adapters)
    more = f", and {len(names) - NAMES_TOLD} more" if len(names) > NAMES_TOLD else ""
    with_adapters = f", with the adapters {', '.join(names[:NAMES_TOLD])}{more}" if names else ""
    return f"this is '{served.model}'{with_adapters}"


def _lora_path(value: Any) -> str:
    """An adapter's name, or a list with the same one for each prompt; null: none."""
    if isinstance(value, list):
        if any(each != value[0] for each in value[1:]):
            what = "'lora_path' must be the same for all prompts of a request; send one for each adapter"
            refuse("lora_path", "unsupported_parameter", what)
        value = value[0] if value else None
    return "" if value is None else typed(str, value, "lora_path")


def other_fields(
    body: Body, defaults: Mapping[str, float], vocabulary: int = INT32_MAX, *, is_chat: bool
) -> dict[str, Any]:
    """All of a CompletionRequest but its prompts. `vocabulary`: how many token ids the model knows."""
    stream, echo = boolean(body, "stream"), boolean(body, "echo")
    n = integer(body, "n", 1, N_MAX) or 1
    best_of = integer(body, "best_of", 1, N_MAX) or n
    if best_of < n:
        refuse("best_of", "invalid_value", f"'best_of' is {best_of}; it must be at least 'n', which is {n}")
    if stream and best_of > n:
        refuse("best_of", "invalid_value", "a stream cannot wait for the best answers; leave out 'best_of' or 'stream'")
    max_tokens, max_tokens_name = max_tokens_of(body, least=0 if echo else 1)
    include_usage, continuous_usage = _usage_options(body, stream)
    sampling, constraint = sampling_of(body, defaults, vocabulary), constraint_of(body)
    if constraint is not None and "min_new_tokens" in sampling:  # its last token would be forbidden and demanded
        what = f"'min_tokens' beside '{constraint.asked_by}': an answer that is complete could not end; leave out one"
        refuse("min_tokens", "invalid_value", what)
    # Of tokenizers that put spaces between tokens; none that is read here does.
    boolean(body, "spaces_between_special_tokens")
    return {
        "stream": stream,
        "n": n,
        "best_of": best_of,
        "echo": echo,
        "logprobs": (logprobs := _logprobs_of_chat(body) if is_chat else _logprobs_of_text(body)),
        "prompt_logprobs": (of_prompt := _prompt_logprobs(body, stream=stream, echo=echo)),
        "prompt_logprobs_from": 0 if (echo and logprobs is not None) or of_prompt is not None else None,
        "include_usage": include_usage,
        "continuous_usage": continuous_usage,
        "return_token_ids": boolean(body, "return_token_ids"),
        "max_tokens": max_tokens,
        "max_tokens_name": max_tokens_name,
        "stop": strings(body, "stop", STOP_STRINGS_MAX, STOP_CHARACTERS_MAX),
        "sampling": sampling | (constraint.sampling if constraint else {}),
        "constrained_by": constraint.asked_by if constraint else "",
        "shows_stop": boolean(body, "no_stop_trim") or boolean(body, "include_stop_str_in_output"),
        "shows_special": not boolean(body, "skip_special_tokens", absent=True),
        "salt": salt_of(body),
        "priority": integer(body, "priority", -PRIORITY_MAX, PRIORITY_MAX) or 0,
        "session": typed(str, body.get("prompt_cache_key", ""), "prompt_cache_key"),
    }


def _logprobs_of_chat(body: Body) -> int | None:
    is_asked, top = boolean(body, "logprobs"), integer(body, "top_logprobs", 0, TOP_LOGPROBS_MAX) or 0
    if top and not is_asked:
        refuse("top_logprobs", "invalid_value", "'top_logprobs' is only for requests with 'logprobs': true")
    return top if is_asked else None


def _logprobs_of_text(body: Body) -> int | None:
    return None if body.get("logprobs") is False else integer(body, "logprobs", 0, TOP_LOGPROBS_MAX)


def _prompt_logprobs(body: Body, *, stream: bool, echo: bool) -> int | None:
    """vLLM's, in an answer that is not streamed. SGLang tells a prompt's logprobs beside `echo` alone."""
    top = integer(body, "prompt_logprobs", 0, TOP_LOGPROBS_MAX)
    if top is not None and stream:
        what = "'prompt_logprobs' is for answers that are not streamed; leave out 'stream', or it"
        refuse("prompt_logprobs", "invalid_value", what)
    if top is not None and echo:
        what = "'prompt_logprobs' beside 'echo', which tells them with 'logprobs'; leave out one"
        refuse("prompt_logprobs", "invalid_value", what)
    return top


def max_tokens_of(body: Body, least: int) -> tuple[int | None, str]:
    """`max_tokens` is the older name of max_completion_tokens; both together must be equal, else BadRequest."""
    old, new = integer(body, "max_tokens", least, INT32_MAX), integer(body, "max_completion_tokens", least, INT32_MAX)
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


def prompts_of(value: Any, vocabulary: int, context_length: int) -> list[str | list[int]]:
    """One prompt, a text or its token ids, or a list of such."""
    if not (isinstance(value, list) and value and isinstance(value[0], str | list)):
        return [_prompt(value, "prompt", vocabulary, context_length)]
    if len(value) > PROMPTS_MAX:
        what = f"'prompt' holds {len(value)} prompts; at most {PROMPTS_MAX} are allowed"
        refuse("prompt", "array_above_max_length", what)
    return [_prompt(each, f"prompt[{index}]", vocabulary, context_length) for index, each in enumerate(value)]


def _prompt(value: Any, here: str, vocabulary: int, context_length: int) -> str | list[int]:
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        wrong_type(here, "a string or a list of token ids", value)
    if not value:
        refuse(here, "empty_array", f"'{here}' is empty")
    if len(value) >= context_length and type(value[0]) is int:  # before each id is looked at
        refuse_too_long(here, len(value), context_length)
    return token_ids(value, here, vocabulary)
