"""A whole answer holds up nobody's stream: what is long to read, or has many logprobs to say, is a thread's."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest

from disagg.errors import ParserFailed
from disagg.frontend.chat_form import ChatWhole
from disagg.frontend.choices import SHORT_CHARACTERS, WholeChoice
from disagg.frontend.generation import SHORT_LOGPROBS
from disagg.frontend.output_parser import OutputParser
from disagg.frontend.parsing import NO_PARSERS, Parsing
from disagg.frontend.parts import ChoiceAnswer
from disagg.plane.messages import TokenLogprobs
from disagg.sglang.parsers.setup import set_up
from disagg.tokenizer.codec import Codec, load_codec
from disagg.tokenizer.overrides import Overrides
from tests.frontend.reading import needs_sglang
from tests.frontend.scripted import Running, ScriptedBackend, ask, exchange, says, serving
from tests.frontend.tool_formats import TOOLS, answer, calls

pytestmark = needs_sglang
LONG = "x" * SHORT_CHARACTERS


@pytest.mark.parametrize(
    ("text", "has_parser", "where"), [(LONG, True, "answers"), ("x", True, "Main"), (LONG, False, "Main")]
)
async def test_where_an_answer_is_read(
    codec: Codec, text: str, has_parser: bool, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads, real = [], WholeChoice.answer

    def answer(choice: WholeChoice) -> ChoiceAnswer:
        threads.append(threading.current_thread().name)
        return real(choice)

    monkeypatch.setattr(WholeChoice, "answer", answer)
    parsing = Parsing(set_up(None, "qwen3", None, {})) if has_parser else NO_PARSERS
    async with serving(ScriptedBackend(says("<think>hm</think>", text)), codec, parsing=parsing) as frontend:
        said = (await exchange(frontend.port, ask())).json["choices"][0]["message"]
    assert said["content"].endswith(text)
    assert said.get("reasoning_content") == ("hm" if has_parser else None)
    assert [name[: len(where)] for name in threads] == [where]


@pytest.mark.parametrize(("tokens", "where"), [(5, "Main"), (SHORT_LOGPROBS // 20, "answers")])
async def test_where_logprobs_are_said(codec: Codec, tokens: int, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chat of 8,000 tokens with 20 logprobs beside each took the event loop half a second."""
    threads, real = [], ChatWhole.whole

    def whole(*args: Any) -> bytes:
        threads.append(threading.current_thread().name)
        return real(*args)

    async def script(running: Running) -> None:
        top = [(token_id, -1.0) for token_id in range(20)]
        running.request.logprobs = [TokenLogprobs(1, -0.5, top)] * tokens
        await running.say("x" * tokens, [1] * tokens, "stop")

    monkeypatch.setattr(ChatWhole, "whole", whole)
    async with serving(ScriptedBackend(script), codec) as frontend:
        answer = await exchange(frontend.port, ask(logprobs=True, top_logprobs=20))
    assert len(answer.json["choices"][0]["logprobs"]["content"]) == tokens
    assert [name[: len(where)] for name in threads] == [where]


async def test_a_parser_that_fails_there_fails_its_own_request(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(_choice: WholeChoice) -> ChoiceAnswer:
        raise ParserFailed("output parser", "the model's answer could not be read", "ask again")

    monkeypatch.setattr(WholeChoice, "answer", answer)
    parsing = Parsing(set_up(None, "qwen3", None, {}))
    async with serving(ScriptedBackend(says(LONG, LONG)), codec, parsing=parsing) as frontend:
        failed = await exchange(frontend.port, ask())
    assert (failed.status, failed.json["error"]["code"]) == (500, "parser_failed")


TEMPLATE = "{{ tools }}{% for said in messages %}{{ said.content }}{% endfor %}"
SHOWS_TOOLS = Overrides(chat_template=TEMPLATE)
LONG_STRING = answer("hermes").replace("Sund", "Sund " * SHORT_CHARACTERS)
MANY_WORDS = LONG + answer("hermes")


@pytest.mark.parametrize(
    ("text", "where"), [(MANY_WORDS, "answers"), (answer("hermes"), "Main"), (LONG_STRING, "Main")]
)  # a long string is not read again: its parser was not given it
async def test_where_the_end_of_a_stream_is_read(
    codec: Codec, text: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads, real = [], OutputParser.end

    def end(parser: OutputParser, reason: Any) -> Any:
        threads.append(threading.current_thread().name)
        return real(parser, reason)

    monkeypatch.setattr(OutputParser, "end", end)
    parsing, codec = Parsing(set_up("hermes", None, None, {})), load_codec(codec.folder, SHOWS_TOOLS)
    async with serving(ScriptedBackend(says(text[:9], text[9:-9], text[-9:])), codec, parsing=parsing) as frontend:
        said = await exchange(frontend.port, ask(stream=True, tools=TOOLS, stream_options={"include_usage": True}))
    assert said.status == 200, said.body
    assert [name[: len(where)] for name in threads] == [where]
    assert said.events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in said.events[:-1]]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks if chunk["choices"]][-1] == "tool_calls"
    assert chunks[-1]["usage"]
    told = [call for chunk in chunks for choice in chunk["choices"] for call in choice["delta"].get("tool_calls", [])]
    assert [call["function"]["name"] for call in told if "id" in call] == [name for name, _ in calls("hermes")]


async def test_an_end_that_fails_there_ends_its_stream_with_an_error(
    codec: Codec, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(_parser: OutputParser, _reason: Any) -> Any:
        raise ParserFailed("output parser", "the model's answer could not be read", "ask again")

    monkeypatch.setattr(OutputParser, "end", end)
    parsing, codec = Parsing(set_up("hermes", None, None, {})), load_codec(codec.folder, SHOWS_TOOLS)
    async with serving(ScriptedBackend(says(LONG, LONG)), codec, parsing=parsing) as frontend:
        said = await exchange(frontend.port, ask(stream=True, tools=TOOLS))
    assert said.status == 200
    assert any("parser_failed" in event for event in said.events)
