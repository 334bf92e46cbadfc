"""Answers of /v1/messages, as the `anthropic` package reads them."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import anthropic
import pytest
from answers import CALLS, ERROR, USAGE, Case, anthropic_client, cases, events, streamed, whole
from anthropic.types import Message, RawMessageStreamEvent
from hypothesis import given, settings
from pydantic import TypeAdapter

from disagg.errors import (
    BadRequest,
    DeadlineExceeded,
    FrontendFull,
    LegLost,
    NoReadyPair,
    Overloaded,
    RequestError,
    SuspectedPoison,
)
from disagg.frontend.messages_api import MessagesStream, MessageWhole, error_body, tokens_counted
from disagg.frontend.parts import CallArguments, CallBegins, Content, Reasoning

ASKED: Any = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}]}


@cache
def event_types() -> TypeAdapter[Any]:
    return TypeAdapter(RawMessageStreamEvent)


def stream_of(case: Case) -> bytes:
    return streamed(MessagesStream("f00d", "m", 12), case)


def whole_of(case: Case) -> Any:
    return whole(MessageWhole("f00d", "m"), case)


def snapshot(data: bytes) -> Any:
    with anthropic_client(data).messages.stream(**ASKED) as stream:
        return stream.get_final_message().to_dict()


@settings(max_examples=60, deadline=None)
@given(cases(in_order=True))
def test_a_stream_comes_to_the_whole_message(case: Case) -> None:
    seen, message = snapshot(stream_of(case)), whole_of(case)
    assert message == {name: seen[name] for name in message}


@settings(max_examples=100, deadline=None)
@given(cases())
def test_blocks_follow_each_other_and_nothing_is_lost(case: Case) -> None:
    found = events(stream_of(case))
    open_index, opened = None, 0
    for kind, data in found:
        event_types().validate_python(data) if kind != "ping" else None
        match kind:
            case "content_block_start":
                assert (open_index, data["index"]) == (None, opened)
                open_index, opened = opened, opened + 1
            case "content_block_delta":
                assert data["index"] == open_index
            case "content_block_stop":
                assert data["index"] == open_index
                open_index = None
    assert [kind for kind, _ in found[:2]] == ["message_start", "ping"]
    assert [kind for kind, _ in found[-2:]] == ["message_delta", "message_stop"]
    assert open_index is None
    seen, answer = snapshot(stream_of(case))["content"], case.answer
    thought = "".join(each["thinking"] for each in seen if each["type"] == "thinking")
    said = "".join(each["text"] for each in seen if each["type"] == "text")
    calls = [(each["id"], each["name"], each["input"]) for each in seen if each["type"] == "tool_use"]
    assert thought == answer.reasoning
    assert "".join(said.split()) == "".join(answer.text.split())
    assert calls == [(call.id, call.name, json.loads(call.arguments)) for call in answer.calls]


def test_a_whole_sequence() -> None:
    found = [
        (kind, data.get("index"), data.get("delta") or data.get("content_block"))
        for kind, data in events(stream_of(CALLS))
    ]
    assert found[2:-2] == [
        ("content_block_start", 0, {"type": "thinking", "thinking": "", "signature": ""}),
        ("content_block_delta", 0, {"type": "thinking_delta", "thinking": "let me "}),
        ("content_block_delta", 0, {"type": "thinking_delta", "thinking": "see"}),
        ("content_block_delta", 0, {"type": "signature_delta", "signature": ""}),
        ("content_block_stop", 0, None),
        ("content_block_start", 1, {"type": "text", "text": ""}),
        ("content_block_delta", 1, {"type": "text_delta", "text": "\n\nI look."}),
        ("content_block_delta", 1, {"type": "text_delta", "text": "\n"}),
        ("content_block_stop", 1, None),
        ("content_block_start", 2, {"type": "tool_use", "id": "call_a", "name": "look", "input": {}}),
        ("content_block_delta", 2, {"type": "input_json_delta", "partial_json": '{"where"'}),
        ("content_block_delta", 2, {"type": "input_json_delta", "partial_json": ': "ü\\"🎾"}'}),
        ("content_block_stop", 2, None),
        ("content_block_start", 3, {"type": "tool_use", "id": "call_b", "name": "wait", "input": {}}),
        ("content_block_delta", 3, {"type": "input_json_delta", "partial_json": "{}"}),
        ("content_block_stop", 3, None),
    ]


def test_input_tokens_are_told_before_the_first_token_and_cached_ones_apart_at_the_end() -> None:
    start, *_, delta, _ = (data for _, data in events(stream_of(CALLS)))
    assert start["message"]["usage"]["input_tokens"] == USAGE["prompt_tokens"]
    told = {"input_tokens": 8, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 4, "output_tokens": 7}
    assert delta["usage"] == whole_of(CALLS)["usage"] == told
    assert json.loads(tokens_counted(12)) == {"input_tokens": 12}


@pytest.mark.parametrize(
    ("finish_reason", "matched", "stop_reason", "stop_sequence"),
    [
        ("stop", None, "end_turn", None),
        ("stop", 2, "end_turn", None),  # a token id: the model's own end
        ("stop", "###", "stop_sequence", "###"),
        ("length", None, "max_tokens", None),
        ("tool_calls", None, "tool_use", None),
        ("tool_calls", "###", "tool_use", None),
    ],
)
def test_why_it_ended(finish_reason: str, matched: str | int | None, stop_reason: str, stop_sequence: str) -> None:
    case = Case([[Content("Hi")]], finish_reason, matched)
    for seen in (snapshot(stream_of(case)), whole_of(case)):
        assert (seen["stop_reason"], seen["stop_sequence"]) == (stop_reason, stop_sequence)


@pytest.mark.parametrize("pieces", [[], [[]], [[Content("")]], [[Reasoning(""), Content("")]]])
def test_an_empty_answer_has_no_content(pieces: Any) -> None:
    case = Case(pieces)
    assert snapshot(stream_of(case))["content"] == whole_of(case)["content"] == []


def test_white_space_alone_is_the_answer_where_nothing_else_is() -> None:
    case = Case([[Content("\n")], [Content(" ")]])
    assert snapshot(stream_of(case))["content"][0]["text"] == whole_of(case)["content"][0]["text"] == "\n "
    beside = Case([[Content("\n"), CallBegins(0, "a", "b"), CallArguments(0, "{}")]], "tool_calls")
    for seen in (snapshot(stream_of(beside)), whole_of(beside)):
        assert [each["type"] for each in seen["content"]] == ["tool_use"]


@pytest.mark.parametrize("arguments", ['{"a": "b', "", "[1]", "[" * 100_000])
def test_a_call_that_broke_off_is_an_object_all_the_same(arguments: str) -> None:
    case = Case([[CallBegins(0, "a", "b"), CallArguments(0, arguments)]], "length")
    message = Message.model_validate(whole_of(case))
    assert message.content[0].to_dict() == {"type": "tool_use", "id": "a", "name": "b", "input": {}}


def test_the_client_reads_a_whole_message() -> None:
    data = MessageWhole("f00d", "m").whole([CALLS.answer], USAGE)
    message = anthropic_client(data, "application/json").messages.create(**ASKED)
    assert isinstance(message, Message)
    Message.model_validate(message.to_dict())
    assert [block.type for block in message.content] == ["thinking", "text", "tool_use", "tool_use"]
    assert message.id == "msg_f00d"


def test_a_stream_that_breaks_tells_the_client_why() -> None:
    form = MessagesStream("f00d", "m", 12)
    data = form.begins(0) + form.piece(0, [Content("Hel")], [], []) + form.fails(ERROR)
    with pytest.raises(anthropic.APIStatusError, match="the decode engine died; try again"):
        snapshot(data)
    kind, said = events(data)[-1]
    assert (kind, said["error"]["type"]) == ("error", "api_error")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (BadRequest("max_tokens", "x", "no"), "invalid_request_error"),
        (BadRequest(None, "invalid_api_key", "no", 401), "authentication_error"),
        (BadRequest(None, "forbidden", "no", 403), "permission_error"),
        (BadRequest("model", "model_not_found", "no", 404), "not_found_error"),
        (BadRequest(None, "too_large", "no", 413), "request_too_large"),
        (BadRequest(None, "rate", "no", 429), "rate_limit_error"),
        (SuspectedPoison("here", "no"), "invalid_request_error"),
        (Overloaded("10.0.0.7", "no"), "overloaded_error"),
        (FrontendFull("10.0.0.7", "no"), "overloaded_error"),
        (NoReadyPair("10.0.0.7", "no"), "api_error"),
        (LegLost("10.0.0.7 room 5", "no"), "api_error"),
        (DeadlineExceeded("10.0.0.7", "no"), "timeout_error"),
    ],
)
def test_errors_are_anthropics(error: RequestError, kind: str) -> None:
    data = error_body(error)
    assert json.loads(data) == {"type": "error", "error": {"type": kind, "message": "no"}}
    with pytest.raises(anthropic.APIStatusError) as caught:
        anthropic_client(data, "application/json", error.http_status).messages.create(**ASKED)
    assert caught.value.status_code == error.http_status
