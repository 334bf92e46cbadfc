"""A body of /v1/responses as a body of /v1/chat/completions, and what its answer repeats.

Way:   JSON body, and the conversation that it goes on with (store.py) -> [read] -> ResponsesRequest -> chat
In:    a decoded body; nothing in it is trusted
Out:   a chat body of one choice; fields that Responses does not have go with it, and the chat's table judges them
Fails: BadRequest, naming the field
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from disagg.errors import BadRequest
from disagg.fields import Body, boolean, integer, refuse, required, typed
from disagg.frontend.api_fields import flag, passed_on, schema_format, text_at, without_nulls
from disagg.frontend.renaming import renamed
from disagg.frontend.responses_api.items import Message, messages_of
from disagg.frontend.responses_api.tools import tools_of
from disagg.sampling import INT32_MAX

OWN = frozenset({"model", "input", "instructions", "max_output_tokens", "metadata", "parallel_tool_calls", "reasoning"})
OWN |= {"previous_response_id", "store", "stream", "stream_options", "text", "tool_choice", "tools", "top_logprobs"}
OWN |= {"include", "background", "truncation", "conversation", "prompt"}
# Labels, tiers, and limits of tools that nobody here runs: they ask for nothing that an answer would show.
HARMLESS = frozenset({"service_tier", "max_tool_calls", "prompt_cache_retention", "client_metadata"})
# What a chat's refusals call otherwise.
NAMES = {
    "messages": "input",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
    "verbosity": "text.verbosity",
    "logprobs": "include",
}
_LOGPROBS, _SEALED = "message.output_text.logprobs", "reasoning.encrypted_content"
# Of tools that are refused: there is nothing of theirs to include.
_INCLUDABLE = frozenset({_LOGPROBS, _SEALED, "code_interpreter_call.outputs", "computer_call_output.output.image_url"})
_INCLUDABLE |= {"file_search_call.results", "message.input_image.image_url", "web_search_call.action.sources"}
_INCLUDABLE |= {"web_search_call.results"}
_SUMMARIES = ("auto", "concise", "detailed")
_ECHOED = {"temperature": None, "top_p": None, "user": None, "prompt_cache_key": None, "safety_identifier": None}


@dataclass(frozen=True, slots=True)
class ResponsesRequest:
    chat: Body
    echo: dict[str, Any]  # for ResponseHead
    history: list[Message]  # what was said before the answer, without instructions: for the store
    stores: bool
    summarises: bool
    seals: bool


def previous_id(body: Body) -> str | None:
    """The response whose conversation goes on."""
    given = body.get("previous_response_id")
    return None if given is None else typed(str, given, "previous_response_id")


def read(body: Body, earlier: list[Message]) -> ResponsesRequest:
    """`earlier`: the conversation of `previous_id`, empty where there is none."""
    body = without_nulls(body)
    passed = passed_on(body, OWN, HARMLESS)
    _refuse_unbuilt(body)
    history = earlier + messages_of(required(body, "input"))
    instructions = typed(str, body.get("instructions", ""), "instructions")
    chat: Body = {**passed, "model": required(body, "model"), "messages": _with_system(instructions, history)}
    max_tokens = integer(body, "max_output_tokens", 1, INT32_MAX)
    if max_tokens is not None:
        chat["max_completion_tokens"] = max_tokens
    if boolean(body, "stream"):
        chat["stream"] = True
    metadata = typed(dict, body.get("metadata", {}), "metadata")
    if metadata:
        chat["metadata"] = metadata
    parallel = boolean(body, "parallel_tool_calls", absent=True)
    tools, tools_echo = tools_of(body)
    if tools and not parallel:
        chat["parallel_tool_calls"] = False
    reasoning = _reasoning(body)
    if reasoning["effort"] is not None:
        chat["reasoning"] = {"effort": reasoning["effort"]}
    included, top_logprobs = _included(body), integer(body, "top_logprobs", 0, INT32_MAX) or 0
    if _LOGPROBS in included or top_logprobs:
        chat |= {"logprobs": True, "top_logprobs": top_logprobs}
    text, text_echo = _text(body)
    stores = boolean(body, "store", absent=True)
    echo = {
        "background": False,
        "instructions": instructions or None,
        "max_output_tokens": max_tokens,
        "max_tool_calls": body.get("max_tool_calls"),
        "metadata": metadata,
        "parallel_tool_calls": parallel,
        "previous_response_id": previous_id(body),
        "reasoning": reasoning,
        "service_tier": "default",
        "store": stores,
        "text": text_echo,
        "top_logprobs": top_logprobs,
        "truncation": "disabled",
        **tools_echo,
        **{name: body.get(name, absent) for name, absent in _ECHOED.items()},
    }
    summarises = reasoning["summary"] is not None
    return ResponsesRequest({**chat, **tools, **text}, echo, history, stores, summarises, _SEALED in included)


def own_words(error: BadRequest) -> BadRequest:
    """A refusal of the chat body, in the names that the client sent."""
    return renamed(error, NAMES)


def _refuse_unbuilt(body: Body) -> None:
    if boolean(body, "background"):
        what = "'background' is not supported here: an answer goes to the client that waits for it; leave it out"
        refuse("background", "unsupported_parameter", what)
    if (truncation := body.get("truncation", "disabled")) != "disabled":
        what = (
            f"'truncation' is {truncation!r}; only 'disabled' is supported: this deployment drops nothing of a prompt"
        )
        refuse("truncation", "unsupported_parameter", what)
    for name, instead in (("conversation", "previous_response_id"), ("prompt", "input")):
        if name in body:
            what = f"'{name}' names what OpenAI's servers keep; send '{instead}' instead"
            refuse(name, "unsupported_parameter", what)
    if flag(typed(dict, body.get("stream_options", {}), "stream_options"), "include_obfuscation", "stream_options"):
        here = "stream_options.include_obfuscation"
        refuse(here, "unsupported_parameter", f"'{here}' is not supported here; leave it out")


def _with_system(instructions: str, history: list[Message]) -> list[Message]:
    """Templates take one system message, at the begin: instructions, and what system and developer said anywhere."""
    texts = [instructions] if instructions else []
    others = []
    for message in history:
        if message["role"] not in ("system", "developer"):
            others.append(message)
        elif isinstance(message["content"], str):
            texts.append(message["content"])
        else:
            texts += [part["text"] for part in message["content"]]
    return [{"role": "system", "content": "\n\n".join(texts)}, *others] if any(texts) else others


def _reasoning(body: Body) -> dict[str, Any]:
    given = typed(dict, body.get("reasoning", {}), "reasoning")
    summary = given.get("summary", given.get("generate_summary"))
    if summary is not None and summary not in _SUMMARIES:
        refuse("reasoning.summary", "invalid_value", f"'reasoning.summary' must be one of {', '.join(_SUMMARIES)}")
    return {"effort": given.get("effort"), "summary": summary}


def _included(body: Body) -> list[str]:
    included = typed(list, body.get("include", []), "include")
    for index, each in enumerate(included):
        here = f"include[{index}]"
        if typed(str, each, here) not in _INCLUDABLE:
            refuse(here, "invalid_value", f"'{here}' is '{each[:100]}'; it may be {', '.join(sorted(_INCLUDABLE))}")
    return included


def _text(body: Body) -> tuple[Body, dict[str, Any]]:
    """(fields of the chat body, what the answer repeats)."""
    given = typed(dict, body.get("text", {}), "text")
    chat: Body = {}
    if given.get("verbosity") not in (None, "medium"):
        chat["verbosity"] = given["verbosity"]
    wanted = typed(dict, given.get("format") or {"type": "text"}, "text.format")
    here = "text.format"
    match text_at(wanted, "type", here):
        case "text":
            pass
        case "json_object":
            chat["response_format"] = {"type": "json_object"}
        case "json_schema":
            more = {name: wanted[name] for name in ("strict", "description") if wanted.get(name) is not None}
            name, schema = text_at(wanted, "name", here), wanted.get("schema")
            chat["response_format"] = schema_format(schema, f"{here}.schema", name, **more)
        case kind:
            what = f"'{here}.type' is '{kind[:100]}'; it may be text, json_object or json_schema"
            refuse(f"{here}.type", "invalid_value", what)
    return chat, {**given, "format": wanted}
