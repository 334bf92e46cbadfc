"""A JSON body of /v1/chat/completions or /v1/completions as plain, checked data.

Way:   bytes -> [parse_chat, parse_completion] -> Asked -> tokenised -> Request
In:    bytes below the body limit; nothing in them is trusted
Out:   Asked: every field in its range; only lengths in tokens are still to be checked
Fails: BadRequest, naming the parameter (the first that is wrong)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from disagg.errors import BadRequest
from disagg.frontend.fields import Body, boolean, integer, refuse, required, strings, wrong_type
from disagg.frontend.parameters import CHAT, COMPLETION, check_names, sampling_of, template_variables

STOP_STRINGS_MAX = 16
STOP_CHARACTERS_MAX = 256
ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
MESSAGE_FIELDS = frozenset({"role", "content", "name"})
# An answer sent back as the client got it holds these, empty.
MESSAGE_UNBUILT = frozenset(
    ["tool_calls", "tool_call_id", "function_call", "audio", "refusal", "annotations", "reasoning_content", "reasoning"]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    source: str  # the parameter that holds the prompt: messages or prompt
    messages: list[dict[str, Any]] = field(default_factory=list)
    template_variables: Mapping[str, Any] = field(default_factory=dict)
    prompt: str | list[int] = ""
    stream: bool
    include_usage: bool
    return_token_ids: bool  # vLLM's addition: the prompt's and the answer's token ids beside the text
    max_tokens: int | None  # output; None: as many as the context leaves
    max_tokens_name: str
    stop: tuple[str, ...]
    sampling: dict[str, Any]


def parse_chat(data: bytes, model: str, defaults: Mapping[str, float]) -> Asked:
    body = check_names(_decode(data), CHAT)
    _check_model(body, model)
    messages = _messages(required(body, "messages"))
    return Asked(
        source="messages",
        messages=messages,
        template_variables=template_variables(body),
        **_shared(body, defaults),
    )


def parse_completion(data: bytes, model: str, vocabulary: int, defaults: Mapping[str, float]) -> Asked:
    body = check_names(_decode(data), COMPLETION)
    _check_model(body, model)
    return Asked(source="prompt", prompt=_prompt(required(body, "prompt"), vocabulary), **_shared(body, defaults))


def _decode(data: bytes) -> Body:
    try:
        body = msgspec.json.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadRequest(None, "invalid_json", f"the body is not JSON: {error}") from None
    except RecursionError:
        raise BadRequest(None, "invalid_json", "the body is nested too deeply") from None
    if not isinstance(body, dict):
        raise BadRequest(None, "invalid_type", "the body must be a JSON object")
    return body


def _check_model(body: Body, model: str) -> None:
    asked = required(body, "model")
    if not isinstance(asked, str):
        wrong_type("model", "a string", asked)
    if asked != model:
        raise BadRequest(
            "model", "model_not_found", f"there is no model '{asked[:100]}' here; this is '{model}'", http_status=404
        )


def _shared(body: Body, defaults: Mapping[str, float]) -> dict[str, Any]:
    stream = boolean(body, "stream")
    max_tokens, max_tokens_name = _max_tokens(body)
    return {
        "stream": stream,
        "include_usage": _include_usage(body, stream),
        "return_token_ids": boolean(body, "return_token_ids"),
        "max_tokens": max_tokens,
        "max_tokens_name": max_tokens_name,
        "stop": strings(body, "stop", STOP_STRINGS_MAX, STOP_CHARACTERS_MAX),
        "sampling": sampling_of(body, defaults),
    }


def _max_tokens(body: Body) -> tuple[int | None, str]:
    """`max_tokens` is the older name; who gives both must mean the same."""
    old, new = (integer(body, name, 1, 2**31 - 1) for name in ("max_tokens", "max_completion_tokens"))
    if old is not None and new is not None and old != new:
        refuse("max_tokens", "invalid_value", "'max_tokens' and 'max_completion_tokens' differ; give one of them")
    return (old, "max_tokens") if new is None else (new, "max_completion_tokens")


def _include_usage(body: Body, stream: bool) -> bool:
    options = body.get("stream_options")
    if options is None:
        return False
    if not isinstance(options, dict):
        wrong_type("stream_options", "an object", options)
    if not stream:
        refuse("stream_options", "invalid_value", "'stream_options' is only for requests with 'stream': true")
    for name, value in options.items():
        here = f"stream_options.{name[:100]}"
        if name == "include_obfuscation" and value in (None, False):
            continue
        if name != "include_usage":
            code = (
                "unsupported_parameter"
                if name in ("include_obfuscation", "continuous_usage_stats")
                else "unknown_parameter"
            )
            refuse(here, code, f"'{here}' is not supported here")
        if value is not None and type(value) is not bool:
            wrong_type(here, "true or false", value)
    return options.get("include_usage") is True


def _prompt(value: Any, vocabulary: int) -> str | list[int]:
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        wrong_type("prompt", "a string or a list of token ids", value)
    if not value:
        refuse("prompt", "empty_array", "'prompt' is empty")
    # All at once, in C: one by one, 8,000 ids take a millisecond of everybody's time.
    if set(map(type, value)) != {int} or min(value) < 0 or max(value) >= vocabulary:
        _refuse_first_wrong(value, vocabulary)
    return value


def _refuse_first_wrong(ids: list[Any], vocabulary: int) -> None:
    for index, token_id in enumerate(ids):
        if isinstance(token_id, str | list):
            refuse("prompt", "unsupported_parameter", "several prompts in one request are not supported here yet")
        if type(token_id) is not int:
            wrong_type(f"prompt[{index}]", "a token id", token_id)
        if not 0 <= token_id < vocabulary:
            what = f"'prompt[{index}]' is {token_id}; token ids of this model are 0 to {vocabulary - 1}"
            refuse(f"prompt[{index}]", "invalid_token_id", what)


def _messages(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        wrong_type("messages", "a list", value)
    if not value:
        refuse("messages", "empty_array", "'messages' is empty; send at least one")
    return [_message(each, f"messages[{index}]") for index, each in enumerate(value)]


def _message(value: Any, here: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        wrong_type(here, "an object", value)
    for name, content in value.items():
        if name in MESSAGE_UNBUILT:
            if content not in (None, [], ""):
                refuse(f"{here}.{name}", "unsupported_parameter", f"'{here}.{name}' is not supported here yet")
        elif name not in MESSAGE_FIELDS:
            refuse(f"{here}.{name[:100]}", "unknown_parameter", f"'{here}.{name[:100]}' is not a field of a message")
    for name in ("role", "content"):
        if value.get(name) is None:
            refuse(f"{here}.{name}", "missing_required_parameter", f"'{here}.{name}' is missing")
    message = {"role": _role(value["role"], f"{here}.role"), "content": _text(value["content"], f"{here}.content")}
    if (name := value.get("name")) is not None:
        if not isinstance(name, str):
            wrong_type(f"{here}.name", "a string", name)
        message["name"] = name
    return message


def _role(value: Any, here: str) -> str:
    if not isinstance(value, str):
        wrong_type(here, "a string", value)
    if value not in ROLES:
        refuse(here, "invalid_value", f"'{here}' is '{value[:100]}'; roles are system, developer, user and assistant")
    if value in ("tool", "function"):
        refuse(here, "unsupported_parameter", f"'{here}' is '{value}': tools are not supported here yet")
    return "system" if value == "developer" else value  # OpenAI's newer word for it, which no template here knows


def _text(value: Any, here: str) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        wrong_type(here, "a string or a list of parts", value)
    if not value:
        refuse(here, "empty_array", f"'{here}' is empty")
    texts = []
    for index, part in enumerate(value):
        part_here = f"{here}[{index}]"
        if not isinstance(part, dict):
            wrong_type(part_here, "an object", part)
        kind = part.get("type")
        if kind != "text":
            code = "missing_required_parameter" if kind is None else "unsupported_parameter"
            refuse(
                f"{part_here}.type", code, f"'{part_here}.type' must be 'text': no other content is supported here yet"
            )
        if not isinstance(part.get("text"), str):
            wrong_type(f"{part_here}.text", "a string", part.get("text"))
        texts.append(part["text"])
    return " ".join(texts)  # as SGLang joins them for templates that expect one string
