"""What a chat template shows, found by trying: the form in which it takes contents, tools and tool calls.

Way:   a template's source -> [probed] -> Shown -> ChatTemplate
In:    the template, rendered with a few small chats whose words are distinctive
Out:   plain data; what the template refuses to render is not known, and so counts as shown
Fails: never

A template may want a content as one text or as typed parts, and given the other form it renders without the words. So
each template is tried once with both forms, role by role, and from then on gets the form whose words it shows. The same
with tools: a template that does not speak of them renders as if there were none.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jinja2

from disagg.tokenizer.content_format import loops_over_parts

PROBE = "Two words"
PRINTED_PARTS = (f"'text': '{PROBE}'", f'"text": "{PROBE}"', f'"text":"{PROBE}"')  # a list as it is: no template's aim
ROLES = ("user", "system", "assistant", "tool")  # the first one's form is used to try the others
TOOL_NAME, CALLED_NAME = "tool_of_a_probe", "called_by_a_probe"
CALL_ID = "probe0001"  # of nine letters and digits, as Mistral's templates want them
FUNCTION = {
    "name": TOOL_NAME,
    "description": "Looks something up.",
    "parameters": {"type": "object", "properties": {"what": {"type": "string", "description": "Which."}}},
}
TOOLS = [{"type": "function", "function": FUNCTION}]
CALL = {"id": CALL_ID, "type": "function", "function": {"name": CALLED_NAME, "arguments": {"what": "it"}}}

Message = dict[str, Any]
Render = Callable[[list[Message], "list[dict[str, Any]] | None"], str | None]


class Form(enum.Enum):
    """Of tools."""

    WRAPPED = "in OpenAI's wrapper"
    BARE = "functions alone"


@dataclass(frozen=True, slots=True)
class Shown:
    splits: frozenset[str] = frozenset()  # roles whose content it gets as parts also where the client sent a text
    keeps: frozenset[str] = frozenset()  # and where the client sent parts; all others get one text
    mute: frozenset[str] = frozenset()  # roles whose words it never shows
    tools: Form | None = None  # None: it was not seen to show any
    hides_calls: bool = False  # it renders an assistant's calls to nothing


def probed(jinja: jinja2.Environment, source: str, render: Render) -> Shown:
    """`render`: with every content in the form that it is given in; None where the template refuses the chat."""
    takes_parts = loops_over_parts(jinja, source)
    splits, keeps, mute = set[str](), set[str](), set[str]()
    for role in ROLES:
        hi = {"role": "user", "content": _parts("Hi") if "user" in splits else "Hi"}
        as_text, as_parts = (_shows(render, role, hi, content) for content in (PROBE, _parts(PROBE)))
        if takes_parts and as_parts and role != "tool":  # what tools say is one text, as SGLang gives it
            keeps.add(role)
        if as_parts and not as_text:
            splits.add(role)
        elif as_text is False and as_parts is not True:
            mute.add(role)
    hi = {"role": "user", "content": _parts("Hi") if "user" in splits else "Hi"}
    calls = render(_called(hi, _parts(PROBE) if "tool" in splits else PROBE), None)
    return Shown(
        splits=frozenset(splits),
        keeps=frozenset(keeps),
        mute=frozenset(mute),
        tools=_form_of_tools(render, hi),
        hides_calls=calls is not None and CALLED_NAME not in calls,
    )


def _shows(render: Render, role: str, hi: Message, content: str | list[dict[str, str]]) -> bool | None:
    """Whether a message's words are in the rendered text; None where the template refuses such a message."""
    message = {"role": role, "content": content}
    chats = {"user": [message], "system": [message, hi], "assistant": [hi, message, hi], "tool": _called(hi, content)}
    prompt = render(chats[role], None)
    if prompt is None:
        return None
    return PROBE in prompt and not any(printed in prompt for printed in PRINTED_PARTS)


def _called(hi: Message, result: str | list[dict[str, str]]) -> list[Message]:
    """A chat in which a tool was called."""
    call = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    return [hi, call, {"role": "tool", "tool_call_id": CALL_ID, "name": CALLED_NAME, "content": result}]


def _form_of_tools(render: Render, hi: Message) -> Form | None:
    system = {"role": "system", "content": hi["content"]}
    for form, tools in ((Form.WRAPPED, TOOLS), (Form.BARE, [FUNCTION])):
        if any(TOOL_NAME in (render(chat, tools) or "") for chat in ([hi], [system, hi])):
            return form
    return None


def _parts(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]
