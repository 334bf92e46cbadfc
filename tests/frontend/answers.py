"""Answers as parts in every order, played through the forms; a strict reader of events; clients that read the bytes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import anthropic
import httpx
import httpx2
import openai
from hypothesis import strategies

from disagg.frontend.choices import Gathered
from disagg.frontend.parts import (
    CallArguments,
    CallBegins,
    ChoiceAnswer,
    Content,
    Part,
    Reasoning,
    StreamForm,
    TokenLogprobs,
    WholeForm,
)

USAGE = {
    "prompt_tokens": 12,
    "completion_tokens": 7,
    "total_tokens": 19,
    "prompt_tokens_details": {"cached_tokens": 4},
    "completion_tokens_details": {"reasoning_tokens": 3},
}
ERROR = (
    b'{"error":{"message":"the decode engine died; try again","type":"server_error","param":null,"code":"leg_lost"}}'
)


@dataclass
class Case:
    """Parts in pieces, as one choice brings them."""

    pieces: list[list[Part]]
    finish_reason: str = "stop"
    matched_stop: str | int | None = None
    logprobs: list[list[TokenLogprobs]] = field(default_factory=list)  # of each piece

    @property
    def answer(self) -> ChoiceAnswer:
        gathered = Gathered()
        for parts in self.pieces:
            gathered.add(parts)
        answer = gathered.said(index=0, finish_reason=self.finish_reason, matched_stop=self.matched_stop)
        answer.logprobs = [each for some in self.logprobs for each in some]
        answer.token_ids = [each.token_id for each in answer.logprobs]
        return answer


def streamed(form: StreamForm, case: Case, usage: dict[str, Any] = USAGE) -> bytes:
    logprobs = case.logprobs or [[]] * len(case.pieces)
    said = [form.begins(0)]
    for parts, some in zip(case.pieces, logprobs, strict=True):
        said.append(form.piece(0, parts, [each.token_id for each in some], some))
    said += [form.choice_ends(case.answer), form.ends(usage)]
    assert all(each == b"" or each.endswith(b"\n\n") for each in said)  # whole events alone
    return b"".join(said)


def whole(form: WholeForm, case: Case) -> Any:
    return json.loads(form.whole([case.answer], USAGE))


def events(data: bytes) -> list[tuple[str, Any]]:
    """(event, data) of a stream whose every line is the standard's; raises for any other."""
    assert data.endswith(b"\n\n")
    found = []
    for block in data.decode()[:-2].split("\n\n"):
        match = re.fullmatch(r"event: ([a-z_.]+)\ndata: (.*)", block)
        assert match is not None, block
        assert len(block.splitlines()) == 2
        said = json.loads(match[2])
        assert said["type"] == match[1]
        found.append((match[1], said))
    return found


def openai_client(data: bytes, content_type: str = "text/event-stream") -> openai.OpenAI:
    headers = {"content-type": content_type}
    transport = httpx.MockTransport(lambda _: httpx.Response(200, headers=headers, content=_cut_anywhere(data)))
    http = httpx.Client(transport=transport, trust_env=False)
    return openai.OpenAI(api_key="none", base_url="http://here/v1", max_retries=0, http_client=http)


def anthropic_client(data: bytes, content_type: str = "text/event-stream", status: int = 200) -> anthropic.Anthropic:
    headers = {"content-type": content_type}
    transport = httpx2.MockTransport(lambda _: httpx2.Response(status, headers=headers, content=_cut_anywhere(data)))
    http = httpx2.Client(transport=transport, trust_env=False)
    return anthropic.Anthropic(api_key="none", base_url="http://here", max_retries=0, http_client=http)


def _cut_anywhere(data: bytes) -> Iterator[bytes]:
    for begin in range(0, len(data), 17):
        yield data[begin : begin + 17]


_TEXT = strategies.text(strategies.sampled_from('ab "\\\n{é🎾\u2028'), min_size=1, max_size=12)
_ARGUMENTS = strategies.dictionaries(_TEXT, _TEXT | strategies.integers(-9, 9), max_size=2)


@strategies.composite
def cases(draw: strategies.DrawFn, *, in_order: bool = False) -> Case:
    """`in_order`: reasoning, then text, then calls, as a whole answer has them."""
    kinds = strategies.sampled_from(["reasoning", "text", "call"])
    if in_order:
        calls = draw(strategies.integers(0, 2))
        order = [*(["reasoning"] * draw(strategies.booleans())), *(["text"] * draw(strategies.booleans()))]
        order += ["call"] * calls
    else:
        order = draw(strategies.lists(kinds, max_size=5))
    parts: list[Part] = []
    calls = 0
    for kind in order:
        if kind == "call":
            parts.append(CallBegins(calls, f"call_{calls}", f"tool_{calls}"))
            arguments = json.dumps(draw(_ARGUMENTS), ensure_ascii=draw(strategies.booleans()))
            parts += [CallArguments(calls, text) for text in _cut(draw, arguments)]
            calls += 1
        else:
            make = Reasoning if kind == "reasoning" else Content
            text = draw(_TEXT) + ("x" if in_order else "")
            parts += [make(each) for each in _cut(draw, text)]
    return Case(_grouped(draw, parts), "tool_calls" if calls else draw(strategies.sampled_from(["stop", "length"])))


def _cut(draw: strategies.DrawFn, text: str) -> list[str]:
    at = sorted(draw(strategies.sets(strategies.integers(0, len(text)), max_size=3)))
    return [text[begin:end] for begin, end in zip([0, *at], [*at, len(text)], strict=True)]


def _grouped(draw: strategies.DrawFn, parts: Sequence[Part]) -> list[list[Part]]:
    grouped: list[list[Part]] = [[]]
    for part in parts:
        if draw(strategies.booleans()):
            grouped.append([])
        grouped[-1].append(part)
    return grouped


CALLS = Case(
    [
        [],
        [Reasoning("let me ")],
        [Reasoning("see"), Content("\n\n")],
        [Content("I look.")],
        [Content("\n"), CallBegins(0, "call_a", "look"), CallArguments(0, "")],
        [CallArguments(0, '{"where"'), CallArguments(0, ': "ü\\"🎾"}')],
        [Content("\n"), CallBegins(1, "call_b", "wait")],
        [CallArguments(1, "{}"), Content("\n")],
    ],
    "tool_calls",
)
