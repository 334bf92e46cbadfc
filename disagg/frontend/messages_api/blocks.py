"""Anthropic's messages, of content blocks, as chat messages.

Way:   messages of a body -> [chat_messages] -> the `messages` of a chat body
Out:   one system message at the begin; a tool's result as a message of its own, in its place between the user's texts;
       thinking of earlier turns as `reasoning_content`. Redacted thinking, which nobody here can read, is left out
Fails: BadRequest, naming the block
"""

from __future__ import annotations

from typing import Any

import msgspec

from disagg.fields import refuse, typed
from disagg.frontend.api_fields import joined, refuse_media, text_at

Message = dict[str, Any]
_ROLES = ("user", "assistant", "system")
_MEDIA = {"image": "an image", "document": "a document", "container_upload": "a file"}


def chat_messages(system: list[str], messages: list[dict[str, Any]]) -> list[Message]:
    found: list[Message] = []
    system = list(system)
    for index, message in enumerate(messages):
        here = f"messages[{index}]"
        role = text_at(message, "role", here)
        if role not in _ROLES:
            refuse(f"{here}.role", "invalid_value", f"'{here}.role' is '{role[:100]}'; roles are user and assistant")
        content, here = message.get("content"), f"{here}.content"
        if content is None:
            refuse(here, "missing_required_parameter", f"'{here}' is missing")
        if role == "system":  # templates take one, at the begin
            system += texts_of(content, here)
        elif isinstance(content, str):
            found.append({"role": role, "content": content})
        elif role == "user":
            found += _of_user(typed(list, content, here), here)
        else:
            found.append(_of_assistant(typed(list, content, here), here))
    begin: list[Message] = [{"role": "system", "content": "\n".join(system)}] if system else []
    if not found:
        refuse("messages", "invalid_value", "'messages' says nothing: each of its contents is empty")
    return begin + found


def texts_of(content: Any, here: str) -> list[str]:
    """A string, or blocks that are texts; blank ones left out."""
    if isinstance(content, str):
        return [content] if content.strip() else []
    blocks = _blocks(typed(list, content, here), here)
    return [text for place, block in blocks if (text := _text(block, place)).strip()]


def _of_user(content: list[Any], here: str) -> list[Message]:
    found: list[Message] = []
    texts: list[str] = []
    for place, block in _blocks(content, here):
        if block["type"] != "tool_result":
            texts.append(_text(block, place))
            continue
        if texts:
            found.append({"role": "user", "content": joined(texts)})
            texts = []
        call_id = text_at(block, "tool_use_id", place)
        found.append({"role": "tool", "tool_call_id": call_id, "content": _result(block, f"{place}.content")})
    return [*found, {"role": "user", "content": joined(texts)}] if texts else found


def _result(block: dict[str, Any], here: str) -> str | list[dict[str, str]]:
    """A chat has no field for a tool that failed: its text says so."""
    content = block.get("content") or ""
    texts = [content] if isinstance(content, str) else texts_of(content, here)
    if block.get("is_error") is True:
        texts = ["Error: " + (texts[0] if texts else ""), *texts[1:]]
    return joined(texts or [""])


def _of_assistant(content: list[Any], here: str) -> Message:
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    for place, block in _blocks(content, here):
        match block["type"]:
            case "thinking":
                thoughts.append(text_at(block, "thinking", place))
            case "redacted_thinking":
                pass
            case "tool_use":
                calls.append(_call(block, place))
            case _:
                texts.append(_text(block, place))
    message: Message = {"role": "assistant", "content": joined(texts or [""])}
    if any(thoughts):
        message["reasoning_content"] = "\n".join(filter(None, thoughts))
    return {**message, "tool_calls": calls} if calls else message


def _call(block: dict[str, Any], here: str) -> dict[str, Any]:
    arguments = msgspec.json.encode(typed(dict, block.get("input", {}), f"{here}.input")).decode()
    function = {"name": text_at(block, "name", here), "arguments": arguments}
    return {"id": text_at(block, "id", here), "type": "function", "function": function}


def _blocks(content: list[Any], here: str) -> list[tuple[str, dict[str, Any]]]:
    """Each with its place; all of them have a type."""
    found = []
    for index, given in enumerate(content):
        place = f"{here}[{index}]"
        text_at(typed(dict, given, place), "type", place)
        found.append((place, given))
    return found


def _text(block: dict[str, Any], here: str) -> str:
    kind = block["type"]
    if kind == "text":
        return text_at(block, "text", here)
    if kind in _MEDIA:
        refuse_media(here, _MEDIA[kind])
    what = f"'{here}.type' is '{kind[:100]}', which is not taken here; send its words as a block of type 'text'"
    refuse(f"{here}.type", "unsupported_parameter", what)
