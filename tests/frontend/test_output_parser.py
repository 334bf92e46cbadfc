"""One choice's answer: reasons, ids, what is held back, what a parser that throws does, what a token costs."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from typing import Any

import pytest

from disagg.errors import ParserFailed
from disagg.frontend.output_parser import OutputParser, ParsingPlan, call_ids
from disagg.frontend.parts import CallArguments, CallBegins, Content, Reasoning
from disagg.sglang.parsers.reasoning import Asked, ReasoningReaders
from disagg.sglang.parsers.tools import ToolReaders
from tests.frontend.reading import cuts, meant, needs_sglang, read, told
from tests.frontend.tool_formats import CALLS, TOOLS, answer

pytestmark = needs_sglang
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo", "days": 3}}\n</tool_call>'
ARRAY = json.dumps([{"name": name, "parameters": arguments} for name, arguments in CALLS], ensure_ascii=False)


def qwen(**more: Any) -> ParsingPlan:
    return ParsingPlan(tools=ToolReaders("qwen25", TOOLS), **more)


def thinking(**more: Any) -> ParsingPlan:
    return ParsingPlan(
        reasoning=ReasoningReaders("qwen3", Asked(is_thinking=True, tools_follow=True)),
        tools=ToolReaders("qwen25", TOOLS),
        **more,
    )


def test_a_name_comes_first_and_arguments_while_they_are_written() -> None:
    parser = OutputParser(qwen(), is_stream=True)
    before = parser.push(CALL[: CALL.index(", ")])
    assert [type(part) for part in before] == []
    parts = parser.push(CALL[CALL.index(", ") : CALL.index("lo")])
    assert isinstance(parts[0], CallBegins)
    assert (parts[0].index, parts[0].name) == (0, "get_weather")
    parts += parser.push(CALL[CALL.index("lo") : CALL.index("}}")])
    assert "".join(part.text for part in parts if isinstance(part, CallArguments)).startswith('{"city": "')


def test_ids_are_openais_and_no_two_are_equal() -> None:
    ids = [call.id for _ in range(50) for call in read(qwen(), [answer("qwen25")]).calls]
    assert len(set(ids)) == 100
    assert all(re.fullmatch(r"call_[0-9a-f]{24}", each) for each in ids)


@pytest.mark.parametrize(
    ("parser", "ids"),
    [
        ("kimi_k2", ["functions.get_weather:2", "functions.get_time:3"]),
        ("kimi_k3", ["get_weather:2", "get_time:3"]),
    ],
)
def test_kimis_ids_go_on_counting(parser: str, ids: list[str]) -> None:
    plan = ParsingPlan(tools=ToolReaders(parser, TOOLS), call_id=call_ids(parser, 2))
    for is_stream in (True, False):
        assert [call.id for call in read(plan, [answer(parser)], is_stream=is_stream).calls] == ids


def test_only_a_stop_becomes_tool_calls() -> None:
    assert read(qwen(), [CALL]).finish_reason == "tool_calls"
    assert read(qwen(), [CALL], "length").finish_reason == "length"
    assert read(qwen(), ["No call."]).finish_reason == "stop"


@pytest.mark.parametrize("is_stream", [True, False])
def test_reasoning_first_then_words_then_calls(is_stream: bool) -> None:
    text = f"Let me <think.</think>Words. {CALL}"
    whole = read(thinking(), [text], is_stream=is_stream)
    assert (whole.reasoning, whole.text.strip()) == ("Let me <think.", "Words.")
    assert meant(whole) == [("get_weather", {"city": "Oslo", "days": 3})]
    for pieces in cuts(text):
        assert told(read(thinking(), pieces, is_stream=is_stream)) == told(whole), pieces


def test_a_call_within_reasoning_ends_it() -> None:
    said = read(thinking(), f"I call. {CALL}")
    assert (said.reasoning, len(said.calls)) == ("I call. ", 1)


def test_without_a_reasoning_parser_its_marks_are_text() -> None:
    assert read(ParsingPlan(), ["<think>a</think>b"]).text == "<think>a</think>b"


def test_plain_words_come_at_once() -> None:
    parser = OutputParser(qwen(), is_stream=True)
    assert parser.push("Hello wor") == [Content("Hello wor")]
    assert parser.push("ld <") == [Content("ld ")]
    assert parser.push(" 3") == [Content("< 3")]
    assert parser.end("stop") == ([], "stop")


def test_reasoning_comes_at_once() -> None:
    parser = OutputParser(thinking(), is_stream=True)
    assert parser.push("Hm") == [Reasoning("Hm")]
    assert parser.push("m </thi") == [Reasoning("m ")]
    assert parser.push("nk>Yes") == [Content("Yes")]


@pytest.mark.parametrize("is_stream", [True, False])
def test_what_a_json_schema_made_is_read_as_an_array(is_stream: bool) -> None:
    plan = ParsingPlan(tools=ToolReaders(None, TOOLS))
    whole = read(plan, [ARRAY], is_stream=is_stream)
    assert (meant(whole), whole.text, whole.finish_reason) == (CALLS, "", "tool_calls")
    for pieces in cuts(ARRAY):
        assert told(read(plan, pieces, is_stream=is_stream)) == told(whole), pieces


def test_brackets_are_left_in_words_and_in_arguments() -> None:
    for name in ("mistral", "qwen25"):
        text = "a[1] = {2}; b]" + answer(name)
        assert read(ParsingPlan(tools=ToolReaders(name, TOOLS)), text).text.startswith("a[1] = {2}; b]")


def test_what_goes_on_with_an_open_call_comes_before_text() -> None:
    """Messages and Responses have one block open at a time. This parser finds the words of a brace at the end."""
    plan = ParsingPlan(tools=ToolReaders("llama3", TOOLS))
    for pieces in cuts(answer("llama3"), 11):
        parser = OutputParser(plan, is_stream=True)
        parts = [part for piece in pieces for part in parser.push(piece)] + parser.end("stop")[0]
        for before, part in pairwise(parts):
            if isinstance(part, CallArguments):
                assert isinstance(before, CallBegins | CallArguments), pieces
                assert before.index == part.index, pieces


def test_a_function_that_was_not_offered_is_not_called() -> None:
    said = read(qwen(), [CALL.replace("get_weather", "rm_rf")])
    assert (said.calls, said.finish_reason) == ([], "stop")


class Thrower:
    """As a parser whose model wrote what it did not foresee."""

    def push(self, text: str) -> Any:
        raise RecursionError(text)

    reader = parser = whole = end = push


@pytest.mark.parametrize("is_stream", [True, False])
def test_a_parser_that_throws_ends_its_own_request_only(is_stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, other = qwen(), OutputParser(qwen(), is_stream=True)
    parser = OutputParser(plan, is_stream=is_stream)
    thrower: Any = Thrower()
    monkeypatch.setattr(parser, "_tools", thrower)
    monkeypatch.setattr(parser, "_plan", ParsingPlan(tools=thrower))
    said = [] if is_stream else parser.push("secret words")
    with pytest.raises(ParserFailed) as failed:
        parser.push("secret words") if is_stream else parser.end("stop")
    assert said == []
    assert failed.value.http_status == 500
    assert "secret" not in failed.value.message
    assert other.push(CALL)
    assert other.end("stop")[1] == "tool_calls"


@pytest.mark.parametrize("name", ["qwen25", "llama3", "hermes", "glm45", "minimax-m3", None])
def test_what_a_token_costs_does_not_grow_with_its_call(name: str | None) -> None:
    """Counted, not timed: how many characters the parser reads again, over those that there are."""
    again = [reread(name, tokens) for tokens in (500, 4000)]
    assert again[1] < 40  # one token at a time these read a text of 4,000 tokens 2,000 times
    assert again[1] < 2 * again[0]


def test_html_beside_a_brace_that_is_no_call_is_not_read_again_at_each_tag() -> None:
    again = [reread_text("llama3", '{"a": 1} ' + "<b>bold</b> " * tokens) for tokens in (200, 1000)]
    assert again[1] < again[0] / 2  # of the first 2,048 characters it reads every tag anew


def reread(name: str | None, tokens: int) -> float:
    long = " ".join(["words"] * tokens)
    return reread_text(name, ARRAY.replace("Sund", long) if name is None else answer(name).replace("Sund", long))


def reread_text(name: str | None, text: str) -> float:
    reader = ToolReaders(name, TOOLS).reader()
    parser = reader._parser
    parse, read_again = parser.parse_stream_chunk, 0

    def counted(unit: str) -> Any:
        nonlocal read_again
        read_again += len(unit) + reader._held.characters()
        return parse(unit)

    parser.parse_stream_chunk = counted
    for token in re.findall(r" ?\w+|.", text, re.S):
        reader.push(token)
    reader.end()
    return read_again / len(text)


def test_long_arguments_are_streamed_all_along() -> None:
    parser, text = OutputParser(qwen(), is_stream=True), CALL.replace("Oslo", " ".join(["words"] * 4000))
    behind, said = [], 0
    for place in range(0, len(text), 6):
        parts = parser.push(text[place : place + 6])
        said += sum(len(part.text) for part in parts if isinstance(part, CallArguments))
        behind.append(place + 6 - said)
    assert max(behind) < 120  # the name and what stands around it, which are no arguments
