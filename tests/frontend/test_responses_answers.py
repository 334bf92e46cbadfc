"""Answers of /v1/responses, as the `openai` package reads them."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
from answers import CALLS, ERROR, Case, cases, events, openai_client, streamed, whole
from hypothesis import given, settings
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from disagg.frontend.parts import CallArguments, CallBegins, Content, Reasoning, TokenLogprobs
from disagg.frontend.responses_api import ResponseHead, ResponsesStream, ResponseWhole, read

ASKED: Any = {"model": "m", "input": "Hi"}
ECHO = read(ASKED, []).echo


def head(**more: Any) -> ResponseHead:
    return ResponseHead("f00d", 1_764_000_000, "m", ECHO, **more)


@cache
def event_types() -> TypeAdapter[Any]:
    return TypeAdapter(ResponseStreamEvent)


def stream_of(case: Case, **more: Any) -> bytes:
    return streamed(ResponsesStream(head(**more)), case)


def whole_of(case: Case, **more: Any) -> Any:
    return whole(ResponseWhole(head(**more)), case)


def seen_by_client(data: bytes) -> Any:
    with openai_client(data).responses.stream(**ASKED) as stream:
        return stream.get_final_response().to_dict()


def accumulated(found: list[tuple[str, Any]]) -> list[Any]:
    """(kind of an item, its text), from deltas alone."""
    items: list[list[Any]] = []
    for kind, data in found:
        if kind == "response.output_item.added":
            items.append([data["item"]["type"], ""])
        elif kind.endswith(".delta"):
            items[data["output_index"]][1] += data["delta"]
    return items


def texts(response: Any) -> list[Any]:
    found = []
    for item in response["output"]:
        text = item["arguments"] if item["type"] == "function_call" else item["content"][0]["text"]
        found.append([item["type"], text])
    return found


@settings(max_examples=60, deadline=None)
@given(cases(in_order=True))
def test_a_stream_comes_to_the_whole_response(case: Case) -> None:
    found = events(stream_of(case))
    assert found[-1][1]["response"] == whole_of(case)
    assert accumulated(found) == texts(whole_of(case))
    if case.finish_reason != "length":
        seen = seen_by_client(stream_of(case))
        assert Response.model_validate(seen).output_text == case.answer.text


@settings(max_examples=100, deadline=None)
@given(cases())
def test_each_event_is_in_its_place(case: Case) -> None:
    found = events(stream_of(case))
    assert [data["sequence_number"] for _, data in found] == list(range(len(found)))
    assert [kind for kind, _ in found[:2]] == ["response.created", "response.in_progress"]
    last = "response.incomplete" if case.finish_reason == "length" else "response.completed"
    assert found[-1][0] == last
    open_item, added = None, 0
    for kind, data in found:
        event: Any = event_types().validate_python(data)
        assert not event.model_extra, (kind, event.model_extra)
        if kind == "response.output_item.added":
            assert (open_item, data["output_index"]) == (None, added)
            open_item, added = data["item"]["id"], added + 1
        elif kind == "response.output_item.done":
            assert data["item"]["id"] == open_item
            assert not event.item.model_extra
            open_item = None
        elif "item_id" in data:
            assert (data["item_id"], data["output_index"]) == (open_item, added - 1)
    response = found[-1][1]["response"]
    Response.model_validate(response)
    assert [data["item"] for kind, data in found if kind == "response.output_item.done"] == response["output"]
    assert accumulated(found) == texts(response)
    answer = case.answer
    said = "".join(text for kind, text in texts(response) if kind == "message")
    assert "".join(said.split()) == "".join(answer.text.split())
    assert "".join(text for kind, text in texts(response) if kind == "reasoning") == answer.reasoning
    calls = [(item["call_id"], item["name"], item["arguments"]) for item in response["output"] if "call_id" in item]
    assert calls == [(call.id, call.name, call.arguments) for call in answer.calls]


def test_a_whole_sequence() -> None:
    begin, reasoning = (
        ["created", "in_progress"],
        ["content_part.added", "reasoning_text.delta", "reasoning_text.delta"],
    )
    message = ["content_part.added", "output_text.delta", "output_text.delta", "output_text.done", "content_part.done"]
    call = ["function_call_arguments.delta", "function_call_arguments.done"]
    item = ["output_item.added", "output_item.done"]
    assert [kind.removeprefix("response.") for kind, _ in events(stream_of(CALLS))] == [
        *begin,
        *[item[0], *reasoning, "reasoning_text.done", "content_part.done", item[1]],
        *[item[0], *message, item[1]],
        *[item[0], call[0], *call, item[1]],
        *[item[0], *call, item[1]],
        "completed",
    ]


def test_reasoning_stands_in_a_summary_and_sealed_where_it_was_asked_for() -> None:
    more = {"summarises": True, "seals": True}
    found = events(stream_of(CALLS, **more))
    kinds = [kind.removeprefix("response.reasoning_") for kind, _ in found if ".reasoning_" in kind]
    text = ["summary_text.delta", "summary_text.delta", "summary_text.done"]
    assert kinds == ["summary_part.added", *text, "summary_part.done"]
    for kind, data in found:
        event: Any = event_types().validate_python(data)
        assert not event.model_extra, kind
    for response in (found[-1][1]["response"], whole_of(CALLS, **more)):
        item = response["output"][0]
        assert item["summary"] == [{"type": "summary_text", "text": "let me see"}]
        again = read(
            {"model": "m", "input": [{**item, "content": None, "summary": []}, {"role": "user", "content": "?"}]}, []
        )
        assert again.chat["messages"][0]["reasoning_content"] == "let me see"


def test_an_answer_that_reached_its_limit_is_incomplete() -> None:
    case = Case([[Reasoning("hm")], [Content("Hel")]], "length")
    for response in (events(stream_of(case))[-1][1]["response"], whole_of(case)):
        assert (response["status"], response["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
        assert [item["status"] for item in response["output"]] == ["completed", "incomplete"]


def test_usage_is_told_in_its_words() -> None:
    assert whole_of(CALLS)["usage"] == {
        "input_tokens": 12,
        "input_tokens_details": {"cached_tokens": 4},
        "output_tokens": 7,
        "output_tokens_details": {"reasoning_tokens": 3},
        "total_tokens": 19,
    }


@pytest.mark.parametrize("pieces", [[], [[]], [[Content("")]]])
def test_an_empty_answer_has_no_items(pieces: Any) -> None:
    case = Case(pieces)
    assert seen_by_client(stream_of(case))["output"] == whole_of(case)["output"] == []


def test_logprobs_of_tokens_without_text_come_with_the_next_text() -> None:
    tokens = [TokenLogprobs(each, -float(each), [(each, -float(each)), (9, -9.5)]) for each in range(4)]
    case = Case([[Content("a")], [], [Content("b")], []], logprobs=[[each] for each in tokens])
    more = {"token_text": lambda token_id: (f"t{token_id}", b"\xf0")}
    found = events(stream_of(case, **more))
    deltas = [data["logprobs"] for kind, data in found if kind == "response.output_text.delta"]
    assert [[each["token"] for each in some] for some in deltas] == [["t0"], ["t1", "t2"]]
    assert found[-1][1]["response"] == whole_of(case, **more)
    (part,) = whole_of(case, **more)["output"][0]["content"]
    assert [each["token"] for each in part["logprobs"]] == ["t0", "t1", "t2", "t3"]
    assert part["logprobs"][1] == {
        "token": "t1",
        "logprob": -1.0,
        "bytes": [0xF0],
        "top_logprobs": [
            {"token": "t1", "logprob": -1.0, "bytes": [0xF0]},
            {"token": "t9", "logprob": -9.5, "bytes": [0xF0]},
        ],
    }


def test_the_client_reads_a_whole_response() -> None:
    data = ResponseWhole(head()).whole([CALLS.answer], {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3})
    response = openai_client(data, "application/json").responses.create(**ASKED)
    assert response.output_text == CALLS.answer.text
    assert response.id == "resp_f00d"
    assert [item.type for item in response.output] == ["reasoning", "message", "function_call", "function_call"]


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("server_error", "server_error"),
        ("overloaded_error", "rate_limit_exceeded"),
        ("invalid_request_error", "invalid_prompt"),
    ],
)
def test_a_stream_that_breaks_ends_as_failed_with_what_came(kind: str, code: str) -> None:
    form = ResponsesStream(head())
    error = json.dumps({"error": {**json.loads(ERROR)["error"], "type": kind}}).encode()
    data = form.begins(0) + form.piece(0, [Content("Hel"), CallBegins(0, "a", "b")], [], []) + form.fails(error)
    *_, last = openai_client(data).responses.create(**ASKED, stream=True)
    assert last.type == "response.failed"
    assert last.response.error is not None
    assert (last.response.error.code, last.response.error.message) == (code, "the decode engine died; try again")
    assert [item.status for item in last.response.output] == ["incomplete", "incomplete"]  # type: ignore[union-attr]


def test_no_delta_goes_to_an_item_that_is_done() -> None:
    """No parser gives them so: the output parser brings what goes on with a call before other parts."""
    begin, rest = [CallBegins(0, "a", "x"), CallArguments(0, '{"p"')], CallArguments(0, ":1}")
    for between in (CallBegins(1, "b", "y"), Content("words")):
        with pytest.raises(AssertionError, match="closed call"):
            stream_of(Case([[*begin, between], [rest]]))
