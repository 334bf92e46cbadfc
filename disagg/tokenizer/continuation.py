"""A prompt that ends in the midst of the last message, for the model to go on there (`continue_final_message`).

Way:   ChatTemplate -> [marked] -> the template -> [continued] -> the prompt
In:    messages in the form the template takes
Out:   as transformers does it: a mark behind the last text, rendered with it, and the prompt is cut there
Fails: BadRequest: no assistant's message to go on with, or a template that does not show its text to the end
"""

from __future__ import annotations

from typing import Any, NoReturn

from disagg.errors import BadRequest

HERE = "continue_final_message"
MARK = "<<<the answer goes on here>>> "  # the blank tells a template that trims from one that does not

Message = dict[str, Any]


def marked(messages: list[Message]) -> tuple[list[Message], str]:
    """(the messages, the last text with a mark behind it; the text itself)."""
    *before, last = messages or [{"role": ""}]
    if last["role"] != "assistant":
        _refuse(f"'{HERE}' wants a last message of the assistant, to go on with; there is none")
    content = last.get("content") or ""
    if isinstance(content, str):
        return [*before, last | {"content": content + MARK}], content
    *parts, text = content
    return [*before, last | {"content": [*parts, text | {"text": text["text"] + MARK}]}], text["text"]


def continued(prompt: str, said: str) -> str:
    at = prompt.rfind(MARK.strip())
    if at < 0 or said.strip() not in prompt:
        _refuse(f"'{HERE}': the model's chat template does not show the last message's text as it is")
    return prompt[:at] if prompt.startswith(MARK, at) else prompt[:at].rstrip()


def _refuse(what: str) -> NoReturn:
    raise BadRequest(HERE, "invalid_value", what)
