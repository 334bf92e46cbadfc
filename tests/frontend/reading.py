"""Reads an answer as the frontend does, in pieces or whole."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from disagg.frontend.choices import Gathered
from disagg.frontend.output_parser import OutputParser, ParsingPlan
from disagg.frontend.parts import ChoiceAnswer
from disagg.sglang.parsers.names import ParserNames, parser_names

NAMES = parser_names() or ParserNames((), ())
needs_sglang = pytest.mark.skipif(not NAMES.tools, reason="SGLang is not installed")


def read(plan: ParsingPlan, pieces: Iterable[str], reason: str = "stop", *, is_stream: bool = True) -> ChoiceAnswer:
    parser, gathered = OutputParser(plan, is_stream=is_stream), Gathered()
    for piece in pieces:
        gathered.add(parser.push(piece))
    parts, end_reason = parser.end(reason)
    gathered.add(parts)
    return gathered.said(index=0, finish_reason=end_reason)


def told(said: ChoiceAnswer) -> tuple[str, str, list[tuple[str, str]], str]:
    """All but the random ids."""
    calls = [(call.name, call.arguments) for call in said.calls]
    return said.reasoning, said.text, calls, said.finish_reason


def meant(said: ChoiceAnswer) -> list[tuple[str, Any]]:
    return [(call.name, json.loads(call.arguments)) for call in said.calls]


def cuts(text: str, step: int = 1) -> Iterator[list[str]]:
    """The text in two, at each place; then one character at a time."""
    for place in range(1, len(text), step):
        yield [text[:place], text[place:]]
    yield list(text)
