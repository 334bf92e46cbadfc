"""Every tool parser of the installed SGLang: its format, whole or cut anywhere, gives the same calls."""

from __future__ import annotations

import pytest

from disagg.frontend.output_parser import ParsingPlan
from disagg.sglang.parsers.tools import ToolReaders
from tests.frontend.reading import NAMES, cuts, meant, needs_sglang, read, told
from tests.frontend.tool_formats import FORMATS, TOOLS, WORDS, answer, calls

pytestmark = needs_sglang
BY_NAME = pytest.mark.parametrize("name", NAMES.tools)
QUICK_STEP = 11  # of the places where a text can be cut, a quick run tries one in so many


def plan_of(name: str) -> ParsingPlan:
    return ParsingPlan(tools=ToolReaders(name, TOOLS))


@BY_NAME
def test_its_format_is_written_down(name: str) -> None:
    assert name in FORMATS, "SGLang has a tool parser more: tests/frontend/tool_formats.py wants its format"


@BY_NAME
@pytest.mark.parametrize("is_stream", [True, False])
def test_the_published_format_gives_its_calls_and_its_words(name: str, is_stream: bool) -> None:
    said = read(plan_of(name), [answer(name)], is_stream=is_stream)
    assert meant(said) == calls(name)
    assert said.text.strip() == WORDS.strip()  # SGLang takes blanks before calls from whole texts alone
    assert said.finish_reason == "tool_calls"
    assert len({call.id for call in said.calls}) == len(said.calls)


@BY_NAME
def test_no_cut_changes_a_call_or_a_word(name: str) -> None:
    plan, text = plan_of(name), answer(name)
    whole = told(read(plan, [text]))
    for pieces in cuts(text, QUICK_STEP):
        assert told(read(plan, pieces)) == whole, pieces


@BY_NAME
@pytest.mark.slow
def test_no_cut_at_any_character_changes_a_call_or_a_word(name: str) -> None:
    plan, text = plan_of(name), answer(name)
    whole = told(read(plan, [text]))
    for pieces in cuts(text):
        assert told(read(plan, pieces)) == whole, pieces


@BY_NAME
def test_words_alone_are_no_call(name: str) -> None:
    for is_stream in (True, False):
        said = read(plan_of(name), WORDS, is_stream=is_stream)
        assert (said.text.strip(), said.calls, said.finish_reason) == (WORDS.strip(), [], "stop")


@BY_NAME
def test_an_answer_that_breaks_off_in_a_call_ends(name: str) -> None:
    """What is left of the call is told, or is text: nothing is thrown, and no call is named twice."""
    text = answer(name)
    for length in range(len(WORDS) + 5, len(text), 23):
        said = read(plan_of(name), [text[:length]], "length")
        assert said.finish_reason == "length"
        assert [call.name for call in said.calls] == [each for each, _ in calls(name)][: len(said.calls)]
