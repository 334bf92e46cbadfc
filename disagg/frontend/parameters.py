"""Which parameters a request may have: those we honour, those that change nothing, those we refuse.

Way:   JSON body -> [check_names] -> those that ask for something -> sampling.py and request_body.py, which read them
Fails: BadRequest: unknown_parameter, unsupported_parameter (not built yet: never silence), forbidden_parameter
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from disagg.fields import Body, refuse
from disagg.frontend.cache_salt import NAMES as SALTS
from disagg.frontend.constraints import READERS as CONSTRAINTS
from disagg.sampling import NAMES

SHARED = NAMES | {"model", "lora_path", "stream", "stream_options", "max_tokens", "stop", "return_token_ids"}
SHARED |= {"add_special_tokens", "truncate_prompt_tokens", "skip_special_tokens", "spaces_between_special_tokens"}
SHARED |= {
    "priority",
    "prompt_cache_key",
    "no_stop_trim",
    "include_stop_str_in_output",
    "n",
    "logprobs",
    "prompt_logprobs",
    *SALTS,
    *CONSTRAINTS,
}
TEMPLATED = {"messages", "documents", "add_generation_prompt", "continue_final_message", "chat_template_kwargs"}
TEMPLATED |= {"reasoning_effort", "reasoning", "tools", "tool_choice", "parallel_tool_calls"}
CHAT = SHARED | TEMPLATED | {"max_completion_tokens", "top_logprobs", "separate_reasoning", "stream_reasoning"}
CHAT |= {"functions", "function_call"}
COMPLETION = SHARED | {"prompt", "best_of", "echo"}
# A chat's or a completion's body may be sent as it is: most of what it says changes no id.
TOKENIZE = CHAT | COMPLETION | {"return_token_strs"}
DETOKENIZE = frozenset({"model", "tokens", "skip_special_tokens"})
HARMLESS = frozenset({"user", "metadata", "prompt_cache_key", "safety_identifier"})  # labels: they ask for nothing

_ANY = object()


def _unbuilt(names: str, *neutral: Any) -> dict[str, tuple[Any, ...]]:
    """Not built for all endpoints. A value that asks for nothing passes, as clients send defaults; null always does."""
    return dict.fromkeys(names.split(), neutral)


UNBUILT: Mapping[str, tuple[Any, ...]] = {
    **_unbuilt("best_of", 1),
    **_unbuilt("top_logprobs", 0),
    **_unbuilt("echo store", False),
    **_unbuilt("suffix", ""),
    **_unbuilt("tools functions", []),
    **_unbuilt("tool_choice function_call", "none", "auto"),
    **_unbuilt("parallel_tool_calls", _ANY),  # says how tools are called; there are none
    **_unbuilt("modalities", ["text"]),
    **_unbuilt("service_tier", "auto", "default"),
    **_unbuilt("audio prediction verbosity web_search_options prompt_cache_retention"),
    # of SGLang and vLLM
    **_unbuilt("priority", 0),
    **_unbuilt("length_penalty", 1.0),
    **_unbuilt("documents", []),
    **_unbuilt("continue_final_message", False),
    **_unbuilt("return_hidden_states use_beam_search", False),
    **_unbuilt("add_generation_prompt", True),
    **_unbuilt("separate_reasoning stream_reasoning"),
    **_unbuilt("lora_path session_params custom_params custom_logit_processor"),
    **_unbuilt("prompt_embeds input_embeds"),
}

# Rooms, hosts and ranks are ours to give: a client that chose them would reach another client's KV.
FORBIDDEN = frozenset({"rid", "room", "data_parallel_rank", "data_parallel_rank_decode", "kv_transfer_params"})
# Never built: why, and what would do.
REFUSED = {"chat_template": "a template is code that would run here; an operator can set model.chat_template"}
FORBIDDEN_PREFIXES = ("bootstrap_", "disagg_")
FORBIDDEN_SUFFIXES = ("_dp_rank",)
FORBIDDEN_HEADERS = (b"x-data-parallel-rank", b"x-routed-dp-rank", b"x-disagg-", b"x-bootstrap-")
WISHES = frozenset({b"x-disagg-session-id", b"x-disagg-priority", b"x-disagg-output-tokens"})  # frontend/wishes.py


def check_headers(headers: Iterable[tuple[bytes, bytes]]) -> None:
    for name, _ in headers:
        if name.startswith(FORBIDDEN_HEADERS) and name not in WISHES:
            text = name.decode("latin-1")
            refuse(text, "forbidden_parameter", f"header '{text}' is not for clients: this deployment picks engines")


def is_forbidden(name: str) -> bool:
    return name in FORBIDDEN or name.startswith(FORBIDDEN_PREFIXES) or name.endswith(FORBIDDEN_SUFFIXES)


def check_names(body: Body, honoured: frozenset[str]) -> Body:
    """The body without nulls and without parameters that change nothing. Raises BadRequest for names it refuses."""
    kept = {}
    for name, value in body.items():
        if name in honoured:
            if value is not None:
                kept[name] = value
            continue
        if is_forbidden(name):
            refuse(name, "forbidden_parameter", f"'{name}' is not for clients: this deployment picks rooms and engines")
        if value is None or name in HARMLESS:
            continue
        if name in REFUSED:
            refuse(name, "unsupported_parameter", f"'{name}' is not for clients: {REFUSED[name]}")
        if name not in UNBUILT:
            refuse(name[:100], "unknown_parameter", f"'{name[:100]}' is not a parameter of this endpoint")
        elif not any(neutral is _ANY or same(neutral, value) for neutral in UNBUILT[name]):
            refuse(name, "unsupported_parameter", f"'{name}' is not supported here yet; leave it out")
    return kept


def same(neutral: Any, value: Any) -> bool:
    """Whether both are equal, however they are encoded: 1.0 is 1, a null field is an absent one, true is not 1."""
    if type(neutral) is dict and type(value) is dict:
        return all(value.get(name) is not None for name in neutral) and all(
            each is None or (name in neutral and same(neutral[name], each)) for name, each in value.items()
        )
    if type(neutral) is type(value):
        return bool(neutral == value)
    return {type(neutral), type(value)} == {int, float} and bool(neutral == value)
