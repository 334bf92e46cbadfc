"""A whole answer holds up nobody's stream: what is long to read, or has many logprobs to say, is a thread's."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from disagg.errors import ParserFailed
from disagg.frontend.chat_form import ChatWhole
from disagg.frontend.choices import SHORT_CHARACTERS, WholeChoice
from disagg.frontend.generation import SHORT_LOGPROBS
from disagg.frontend.parsing import NO_PARSERS, Parsing
from disagg.frontend.parts import ChoiceAnswer
from disagg.plane.messages import TokenLogprobs
from disagg.sglang.parsers.setup import set_up
from disagg.tokenizer.codec import Codec
from tests.frontend.reading import needs_sglang
from tests.frontend.scripted import Running, ScriptedBackend, ask, exchange, says, serving

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
