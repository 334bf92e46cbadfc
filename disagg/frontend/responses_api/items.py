"""Input items of Responses as chat messages.

Way:   `input` -> [messages_of] -> the `messages` of a chat body
Out:   messages, calls and reasoning of one turn of the assistant are one message; a call's output is a tool message
Fails: BadRequest, naming the item
"""

from __future__ import annotations

from typing import Any

import msgspec

from disagg.fields import refuse, typed
from disagg.frontend.api_fields import joined, refuse_media, text_at
from disagg.frontend.responses_api.reasoning_state import unsealed

Message = dict[str, Any]
_ROLES = ("user", "assistant", "system", "developer")
_TEXTS = ("input_text", "output_text", "text", "summary_text", "reasoning_text")
_MEDIA = {"input_image": "an image", "input_file": "a file", "input_audio": "audio"}


def messages_of(given: Any) -> list[Message]:
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    items = typed(list, given, "input")
    if not items:
        refuse("input", "empty_array", "'input' is empty; send at least one item")
    found: list[Message] = []
    for index, item in enumerate(items):
        here = f"input[{index}]"
        message = _message(typed(dict, item, here), here)
        if message is None:
            continue
        if message["role"] == "assistant" and found and found[-1]["role"] == "assistant":
            _extend(found[-1], message)
        else:
            found.append(message)
    return [_said(message) for message in found]


def _message(item: dict[str, Any], here: str) -> Message | None:
    """Its `content` and its reasoning are still lists of texts. None for reasoning that nobody here can read."""
    match item.get("type", "message"):
        case "message":
            role = text_at(item, "role", here)
            if role not in _ROLES:
                refuse(
                    f"{here}.role", "invalid_value", f"'{here}.role' is '{role[:100]}'; roles are {', '.join(_ROLES)}"
                )
            return {"role": role, "content": _texts(item.get("content"), f"{here}.content")}
        case "function_call":
            arguments = object_of(text_at(item, "arguments", here))
            function = {"name": text_at(item, "name", here), "arguments": arguments}
            call = {"id": text_at(item, "call_id", here), "type": "function", "function": function}
            return {"role": "assistant", "content": [], "tool_calls": [call]}
        case "function_call_output":
            content = _texts(item.get("output"), f"{here}.output")
            return {"role": "tool", "tool_call_id": text_at(item, "call_id", here), "content": content}
        case "reasoning":
            thoughts = _reasoning(item, here)
            return {"role": "assistant", "content": [], "reasoning_content": [thoughts]} if thoughts else None
        case kind:
            what = f"'{here}.type' is '{str(kind)[:100]}', which is not taken here; 'input' may hold messages, "
            refuse(f"{here}.type", "unsupported_parameter", f"{what}function_call, function_call_output and reasoning")


def _texts(content: Any, here: str) -> list[str]:
    if content is None:
        refuse(here, "missing_required_parameter", f"'{here}' is missing")
    if isinstance(content, str):
        return [content]
    return [
        _text(typed(dict, part, f"{here}[{i}]"), f"{here}[{i}]") for i, part in enumerate(typed(list, content, here))
    ]


def _text(part: dict[str, Any], here: str) -> str:
    kind = text_at(part, "type", here)
    if kind in _MEDIA:
        refuse_media(here, _MEDIA[kind])
    if kind == "refusal":
        return text_at(part, "refusal", here)
    if kind not in _TEXTS:
        what = f"'{here}.type' is '{kind[:100]}'; parts here are input_text and output_text"
        refuse(f"{here}.type", "unsupported_parameter", what)
    return text_at(part, "text", here)


def _reasoning(item: dict[str, Any], here: str) -> str:
    """The text itself, else what we sealed, else its summary."""
    texts = _texts(item.get("content") or [], f"{here}.content")
    if not any(texts):
        texts = [unsealed(typed(str, item.get("encrypted_content") or "", f"{here}.encrypted_content"))]
    if not any(texts):
        texts = _texts(item.get("summary") or [], f"{here}.summary")
    return "\n".join(filter(None, texts))


def object_of(arguments: str) -> str:
    """An object in any case: a call that broke off would end the template of each later request of a conversation."""
    try:
        is_object = isinstance(msgspec.json.decode(arguments), dict)
    except (msgspec.DecodeError, RecursionError):
        is_object = False
    return arguments if is_object else "{}"


def _extend(turn: Message, message: Message) -> None:
    """In place: a turn may have as many items as a body holds."""
    for name in message.keys() - {"role"}:
        turn.setdefault(name, []).extend(message[name])


def _said(message: Message) -> Message:
    said = {**message, "content": joined(message["content"] or [""])}
    if "reasoning_content" in message:
        said["reasoning_content"] = "\n".join(message["reasoning_content"])
    return said
