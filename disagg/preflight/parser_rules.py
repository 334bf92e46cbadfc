"""The parsers of the model's text: names that the installed SGLang has.

Way:   Subject -> [this rule] -> Problems. Without SGLang on this machine nothing is known, and nothing found
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator

from disagg.errors import Problem
from disagg.preflight.rule import rule
from disagg.preflight.subject import Subject
from disagg.sglang.parsers.names import parser_names
from disagg.sglang.parsers.setup import AUTO


@rule("sglang function_call_parser.py, reasoning_parser.py", "take one of its names, or say auto")
def _parsers(subject: Subject) -> Iterator[Problem]:
    """the frontend would end before its first line of text: SGLang has no parser of that name"""
    said = {key: subject.setting(f"model.{key}") for key in ("tool_call_parser", "reasoning_parser")}
    if all(name in (None, AUTO) for name in said.values()) or (names := parser_names()) is None:
        return
    for key, known in (("tool_call_parser", names.tools), ("reasoning_parser", names.reasoning)):
        name = said[key]
        if name not in (None, AUTO, *known):
            near = difflib.get_close_matches(str(name), known, 1)
            meant = f"say {near[0]}; " if near else ""
            yield Problem(
                f"model.{key}",
                f"is {name}, which SGLang here does not have",
                f"{meant}it has {', '.join(known)}; or auto",
            )
