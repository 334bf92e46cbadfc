"""The names of the parsers that the installed SGLang has: from its own tables, so that they are always those.

Way:   preflight, setup.py -> [parser_names]
"""

from __future__ import annotations

from typing import NamedTuple

from disagg.sglang.parsers.light_import import sglang_parsers


class ParserNames(NamedTuple):
    tools: tuple[str, ...]
    reasoning: tuple[str, ...]


def parser_names() -> ParserNames | None:
    """None where SGLang is not installed."""
    try:
        parsers = sglang_parsers()
    except ImportError:
        return None
    tools, reasoning = parsers.function_call_parser.ToolCallParserEnum, parsers.reasoning_parser.DetectorMap
    return ParserNames(tuple(sorted(tools)), tuple(sorted(reasoning)))
