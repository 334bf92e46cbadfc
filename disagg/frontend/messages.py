"""The messages of a chat as plain, checked data, in the words that chat templates know.

Way:   body -> reading.py -> [messages_of] -> chat template
In:    `messages` of a decoded body; nothing in them is trusted
Out:   a dict a message: role, content (a text, or parts that are texts), and where there are some name, tool_calls
       (their arguments as an object), tool_call_id, reasoning_content
Fails: BadRequest, naming the message and the field
"""

from __future__ import annotations

from typing import Any

import msgspec

from disagg.fields import refuse, typed, wrong_type

ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})
FIELDS = frozenset({"role", "content", "name"})
# An answer sent back as the client got it has all of these, most of them empty. (`parsed`: the openai client's own.)
OF_ASSISTANT = frozenset(
    {"tool_calls", "reasoning_content", "reasoning", "refusal", "annotations", "audio", "function_call", "parsed"}
)
OF_TOOL = frozenset({"tool_call_id"})
OF_ROLE = {role: FIELDS for role in ROLES} | {"assistant": FIELDS | OF_ASSISTANT, "tool": FIELDS | OF_TOOL}
PART_FIELDS = frozenset({"type", "annotations", "cache_control"})  # the last is Anthropic's hint: it asks for nothing
TEXTS = {"text": "text", "refusal": "refusal"}  # a part's type -> the field that has its text
OF_ANY = FIELDS | OF_ASSISTANT | OF_TOOL
# Of other APIs, too.
MEDIA = frozenset(
    f"{prefix}{medium}{suffix}"
    for medium in ("image", "audio", "video", "file")
    for prefix, suffix in (("", ""), ("", "_url"), ("input_", ""))
)
OF_PART = PART_FIELDS | MEDIA | set(TEXTS.values())
CALL_FIELDS = frozenset({"id", "type", "function", "index"})
FUNCTION_FIELDS = frozenset({"name", "arguments", "parsed_arguments"})
EMPTY: tuple[Any, ...] = (None, [], "")

Message = dict[str, Any]
Content = str | list[dict[str, str]]


def messages_of(value: Any, context_length: int) -> list[Message]:
    if not typed(list, value, "messages"):
        refuse("messages", "empty_array", "'messages' is empty; send at least one")
    _check_count(value, "messages", context_length)
    return [
        each if _is_plain(each) else _message(each, f"messages[{index}]", context_length)
        for index, each in enumerate(value)
    ]


def take_unknown_of(messages: Any) -> list[str]:
    """Takes out of messages what nobody here knows of them, of their parts and of their calls, and gives its names.
    What is of another shape than theirs is left to `messages_of`."""
    found: dict[str, None] = {}

    def take(given: Any, known: frozenset[str], here: str) -> None:
        if type(given) is not dict or given.keys() <= known:
            return
        for name in [each for each in given if each not in known]:
            found[f"{here}.{name}"] = None
            del given[name]

    for message in messages if type(messages) is list else ():
        if type(message) is not dict or _is_plain(message):
            continue
        take(message, OF_ANY, "messages[]")
        for part in _listed(message, "content"):
            take(part, OF_PART, "messages[].content[]")
        for call in _listed(message, "tool_calls"):
            take(call, CALL_FIELDS, "messages[].tool_calls[]")
            if type(call) is dict:
                take(call.get("function"), FUNCTION_FIELDS, "messages[].tool_calls[].function")
    return list(found)


def _listed(message: Message, name: str) -> list[Any]:
    entries = message.get(name)
    return entries if type(entries) is list else []


def _is_plain(message: Any) -> bool:
    """A role and a text, as nearly all are: they stay what they are."""
    if type(message) is not dict or len(message) != 2:
        return False
    role = message.get("role")
    return type(message.get("content")) is str and type(role) is str and role in ROLES


def _check_count(entries: list[Any], here: str, context_length: int) -> None:
    """Before each is looked at: a template gives a token to every one, and more."""
    if len(entries) > context_length:
        what = f"'{here}' has {len(entries)} entries; the model's context is {context_length} tokens"
        refuse(here, "context_length_exceeded", what)


def _message(value: Any, here: str, context_length: int) -> Message:
    given = {name: each for name, each in typed(dict, value, here).items() if each is not None}
    if "role" not in given:
        refuse(f"{here}.role", "missing_required_parameter", f"'{here}.role' is missing")
    role = _role(typed(str, given["role"], f"{here}.role"), f"{here}.role")
    if not given.keys() <= FIELDS:
        _check_names(given, role, here)
    if role == "assistant":
        message = _assistants(given, here, context_length)
    elif "content" in given:
        message = {"role": role, "content": _content(given["content"], role, f"{here}.content")}
    elif role == "tool":  # it had nothing to say
        message = {"role": role, "content": ""}
    else:
        refuse(f"{here}.content", "missing_required_parameter", f"'{here}.content' is missing")
    if role == "tool" and "tool_call_id" in given:
        message["tool_call_id"] = typed(str, given["tool_call_id"], f"{here}.tool_call_id")
    if "name" in given:
        message["name"] = typed(str, given["name"], f"{here}.name")
    return message


def _role(role: str, here: str) -> str:
    if role == "function":
        what = f"'{here}' is 'function', the older form of 'tool': send that, with the 'tool_call_id' of its call"
        refuse(here, "unsupported_parameter", what)
    if role not in ROLES:
        what = f"'{here}' is '{role[:100]}'; roles are system, developer, user, assistant and tool"
        refuse(here, "invalid_value", what)
    return role


def _check_names(given: Message, role: str, here: str) -> None:
    for name, value in given.items():
        where = f"{here}.{name[:100]}"
        if name in OF_ROLE[role] or (value in EMPTY and name in OF_ASSISTANT | OF_TOOL):
            continue
        if name in OF_ASSISTANT | OF_TOOL:
            of = "assistant" if name in OF_ASSISTANT else "tool"
            refuse(where, "invalid_value", f"'{where}' is of messages of role '{of}', and this one is of '{role}'")
        refuse(where, "unknown_parameter", f"'{where}' is not a field of a message")


def _assistants(given: Message, here: str, context_length: int) -> Message:
    for name in ("audio", "annotations", "function_call"):
        if given.get(name) not in EMPTY:
            would_do = "send 'tool_calls'" if name == "function_call" else "this model takes text only; leave it out"
            refuse(f"{here}.{name}", "unsupported_parameter", f"'{here}.{name}' is not supported here: {would_do}")
    content: Content = _content(given["content"], "assistant", f"{here}.content") if "content" in given else ""
    refusal = typed(str, given.get("refusal") or "", f"{here}.refusal")
    if refusal and content:
        refuse(f"{here}.refusal", "invalid_value", f"'{here}' has 'content' and 'refusal'; send what was said, once")
    message: Message = {"role": "assistant", "content": content or refusal}
    reasoning = given.get("reasoning_content") or given.get("reasoning") or ""
    if typed(str, reasoning, f"{here}.reasoning_content"):
        message["reasoning_content"] = reasoning
    calls = typed(list, given.get("tool_calls") or [], f"{here}.tool_calls")
    if calls:
        _check_count(calls, f"{here}.tool_calls", context_length)
        message["tool_calls"] = [_call(each, f"{here}.tool_calls[{index}]") for index, each in enumerate(calls)]
    if "content" not in given and not refusal and len(message) == 2:
        what = f"'{here}.content' is missing; only beside 'tool_calls' or 'reasoning_content' it may be"
        refuse(f"{here}.content", "missing_required_parameter", what)
    return message


def _call(value: Any, here: str) -> dict[str, Any]:
    """In the order of names that SGLang gives a template, which may write it as it is."""
    call = _named(value, CALL_FIELDS, here, "a tool call")
    if (kind := call.get("type", "function")) != "function":
        refuse(f"{here}.type", "unsupported_parameter", f"'{here}.type' must be 'function', not {str(kind)[:100]!r}")
    if "function" not in call:
        refuse(f"{here}.function", "missing_required_parameter", f"'{here}.function' is missing")
    function = _named(call["function"], FUNCTION_FIELDS, f"{here}.function", "a function's call")
    if not typed(str, function.get("name"), f"{here}.function.name"):
        refuse(f"{here}.function.name", "invalid_value", f"'{here}.function.name' is empty")
    arguments = _arguments(function.get("arguments", ""), f"{here}.function.arguments")
    called = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
    return {"id": typed(str, call["id"], f"{here}.id"), **called} if "id" in call else called


def _named(value: Any, names: frozenset[str], here: str, what: str) -> dict[str, Any]:
    given = {name: each for name, each in typed(dict, value, here).items() if each is not None}
    for name in given.keys() - names:
        refuse(f"{here}.{name[:100]}", "unknown_parameter", f"'{here}.{name[:100]}' is not a field of {what}")
    return given


def _arguments(value: Any, here: str) -> dict[str, Any]:
    """Templates want the object that a client sends as JSON text."""
    if isinstance(value, str):
        if not value.strip():
            return {}
        try:
            value = msgspec.json.decode(value)
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            refuse(here, "invalid_value", f"'{here}' is not JSON: {error}")
    if not isinstance(value, dict):
        wrong_type(here, "a JSON object", value)
    return value


def _content(value: Any, role: str, here: str) -> Content:
    """A text, or parts that are texts: the template says which of the two it takes (disagg/tokenizer/template.py)."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        wrong_type(here, "a string or a list of parts", value)
    if not value:
        refuse(here, "empty_array", f"'{here}' is empty")
    return [_part(part, role, f"{here}[{index}]") for index, part in enumerate(value)]


def _part(part: Any, role: str, here: str) -> dict[str, str]:
    kind = typed(dict, part, here).get("type")
    if not isinstance(kind, str):
        refuse(f"{here}.type", "missing_required_parameter", f"'{here}.type' must be 'text'")
    if kind not in TEXTS or (kind == "refusal" and role != "assistant"):
        shown = f"'{here}.type' is '{kind[:100]}'"
        what = f"{shown}; this model takes text only" if kind in MEDIA else f"{shown}; it must be 'text'"
        refuse(f"{here}.type", "unsupported_parameter", what)
    field = TEXTS[kind]
    text = typed(str, part.get(field), f"{here}.{field}")
    for name, value in part.items():
        if name != field and name not in PART_FIELDS and value not in EMPTY:
            refuse(
                f"{here}.{name[:100]}", "unknown_parameter", f"'{here}.{name[:100]}' is not a field of a {kind} part"
            )
    return {"type": "text", "text": text}
