"""What of a chat, beside its tools, decides how its answer is written and read.

Way:   body -> reading.py -> [talk_of] -> parsing.py
Fails: BadRequest, naming the parameter
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from disagg.fields import Body, boolean
from disagg.frontend.template_variables import template_variables


class Talk(msgspec.Struct, frozen=True, kw_only=True):
    variables: Mapping[str, Any] = {}  # of the template
    effort: str | None = None  # reasoning_effort, where it is a word
    separate_reasoning: bool = True  # false: reasoning stays in the text, with its marks, as with SGLang
    stream_reasoning: bool = True
    continued: str | None = None  # the assistant's text that the answer goes on with
    earlier_calls: int = 0  # in the conversation so far
    is_constrained: bool = False  # by response_format, a regex, a grammar


def talk_of(body: Body, *, is_constrained: bool) -> Talk:
    """Of a body whose messages have been checked."""
    messages, variables = body["messages"], template_variables(body)
    effort = variables.get("reasoning_effort")
    last = messages[-1].get("content") if boolean(body, "continue_final_message") else None
    return Talk(
        variables=variables,
        effort=effort if isinstance(effort, str) else None,
        separate_reasoning=boolean(body, "separate_reasoning", absent=True),
        stream_reasoning=boolean(body, "stream_reasoning", absent=True),
        continued=last if isinstance(last, str) else None,
        earlier_calls=sum(len(each.get("tool_calls") or ()) for each in messages),
        is_constrained=is_constrained,
    )
