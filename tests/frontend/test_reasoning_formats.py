"""Every reasoning parser of the installed SGLang: thought and answer told apart, however the text is cut."""

from __future__ import annotations

import pytest

from disagg.frontend.output_parser import OutputParser, ParsingPlan
from disagg.frontend.parts import Reasoning
from disagg.sglang.parsers.reasoning import Asked, ReasoningReaders, reasoning_marks
from tests.frontend.reading import NAMES, cuts, needs_sglang, read, told
from tests.frontend.reasoning_formats import ANSWER, FORMATS, NOT_TOLD_APART, PROMOTED, THOUGHT, answer

pytestmark = needs_sglang
BY_NAME = pytest.mark.parametrize("name", [name for name in NAMES.reasoning if name not in NOT_TOLD_APART])


def plan_of(name: str, stream_reasoning: bool = True) -> ParsingPlan:
    return ParsingPlan(reasoning=ReasoningReaders(name, Asked(is_thinking=True)), stream_reasoning=stream_reasoning)


@BY_NAME
def test_its_format_is_written_down(name: str) -> None:
    assert name in FORMATS, "SGLang has a reasoning parser more: tests/frontend/reasoning_formats.py wants its format"


@BY_NAME
@pytest.mark.parametrize("is_stream", [True, False])
def test_thought_and_answer_are_told_apart(name: str, is_stream: bool) -> None:
    said = read(plan_of(name), [answer(name)], is_stream=is_stream)
    assert (said.reasoning.strip(), said.text.strip()) == (THOUGHT.strip(), ANSWER.strip())


@BY_NAME
def test_no_cut_changes_a_word(name: str) -> None:
    plan, text = plan_of(name), answer(name)
    whole = told(read(plan, [text]))
    for pieces in cuts(text, 3):
        assert told(read(plan, pieces)) == whole, pieces


@BY_NAME
def test_reasoning_comes_in_one_piece_where_the_client_wants_that(name: str) -> None:
    parser = OutputParser(plan_of(name, stream_reasoning=False), is_stream=True)
    parts = [part for character in answer(name) for part in parser.push(character)]
    parts += parser.end("stop")[0]
    assert [part.text.strip() for part in parts if isinstance(part, Reasoning)] == [THOUGHT]


@BY_NAME
def test_a_thought_that_breaks_off_is_reasoning(name: str) -> None:
    text = answer(name)
    said = read(plan_of(name), text[: text.index(" it is not")], "length")
    assert said.reasoning.strip() == THOUGHT.removesuffix(" it is not.")
    assert said.text.strip() == (said.reasoning if name in PROMOTED else "")


def test_special_tokens_stay_in_the_text_where_they_are_the_marks() -> None:
    tokens = ["<|channel|>", "<think>", "</think>"]
    assert reasoning_marks("gpt-oss", tokens, ["<|channel|>"]).keeps_special_tokens
    assert not reasoning_marks("qwen3", tokens, ["<|channel|>"]).keeps_special_tokens
    assert reasoning_marks("qwen3", tokens, []).end == "</think>"
