"""Fields that nobody foresaw: left out and named, or refused; what is not for clients is refused either way."""

from __future__ import annotations

import json
from typing import Any

import pytest

from disagg.frontend.messages import take_unknown_of
from disagg.frontend.unknown_fields import header_of
from disagg.tokenizer.codec import Codec
from tests.frontend.scripted import MODEL, ScriptedBackend, ask, exchange, http_request, says, serving

CHAT = "/v1/chat/completions"
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [{"role": "user", "content": "Hi"}]},
    "/v1/completions": {"prompt": "Hi"},
    "/v1/responses": {"input": "Hi"},
    "/v1/messages": {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4},
    "/v1/messages/count_tokens": {"messages": [{"role": "user", "content": "Hi"}]},
    "/generate": {"text": "Hi"},
    "/tokenize": {"prompt": "Hi"},
}


@pytest.mark.parametrize("path", BODIES)
async def test_they_are_left_out_and_named_or_refused(codec: Codec, path: str) -> None:
    body = json.dumps({"model": MODEL, **BODIES[path], "shiny_new": {"a": 1}}).encode()
    for refuses in (False, True):
        async with serving(ScriptedBackend(says("x")), codec, refuses_unknown=refuses) as frontend:
            answer = await exchange(frontend.port, http_request("POST", path, body))
        if refuses:
            assert answer.status == 400
            assert b"shiny_new" in answer.body
        else:
            assert (answer.status, answer.headers["x-disagg-ignored-fields"]) == (200, "shiny_new"), answer.body


@pytest.mark.parametrize(
    ("name", "code"), [("bootstrap_room", "forbidden_parameter"), ("prediction", "unsupported_parameter")]
)
async def test_what_is_known_and_not_for_clients_stays_refused(codec: Codec, name: str, code: str) -> None:
    async with serving(ScriptedBackend(says("x")), codec, refuses_unknown=False) as frontend:
        answer = await exchange(frontend.port, ask(CHAT, **{name: 5}))
    assert (answer.status, answer.json["error"]["code"]) == (400, code)


MESSAGE = {"role": "user", "content": "Hi"}
CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}", "x": 1}, "y": 2}
IN_MESSAGES: dict[str, tuple[list[dict[str, Any]], str]] = {
    "of a message": ([MESSAGE | {"weight": 1, "id": "m"}, MESSAGE | {"id": "n"}], "messages[].weight, messages[].id"),
    "of a part": (
        [{"role": "user", "content": [{"type": "text", "text": "Hi", "meta": {"a": 1}}]}],
        "messages[].content[].meta",
    ),
}


@pytest.mark.parametrize("case", IN_MESSAGES)
async def test_those_of_messages_are_left_out_and_named_or_refused(codec: Codec, case: str) -> None:
    messages, named = IN_MESSAGES[case]
    answers = []
    for refuses in (False, True):
        async with serving(ScriptedBackend(says("x")), codec, refuses_unknown=refuses) as frontend:
            answers.append(await exchange(frontend.port, ask(CHAT, messages=messages)))
    ignored, refused = answers
    assert (ignored.status, ignored.headers["x-disagg-ignored-fields"]) == (200, named)
    assert (refused.status, refused.json["error"]["code"]) == (400, "unknown_parameter")


def test_of_calls_and_of_what_is_no_message() -> None:
    messages = [{"role": "assistant", "content": None, "tool_calls": [json.loads(json.dumps(CALL))]}]
    assert take_unknown_of(messages) == ["messages[].tool_calls[].y", "messages[].tool_calls[].function.x"]
    assert "x" not in messages[0]["tool_calls"][0]["function"]  # type: ignore[index]
    for odd in (None, 5, [5, None], [{"content": 5, "tool_calls": {"a": 1}}], [{"tool_calls": [5, {"function": 5}]}]):
        assert take_unknown_of(odd) == []


def test_what_is_known_of_another_role_is_no_unknown_field() -> None:
    messages = [MESSAGE | {"tool_call_id": "a", "reasoning_content": "b"}]
    assert take_unknown_of(messages) == []


async def test_a_long_body_too(codec: Codec) -> None:
    async with serving(ScriptedBackend(says("x")), codec, refuses_unknown=False) as frontend:
        answer = await exchange(frontend.port, ask("/v1/completions", prompt=[1] * 400, metadata="m" * 40_000, other=1))
    assert (answer.status, answer.headers["x-disagg-ignored-fields"]) == (200, "other")


def test_no_name_breaks_the_header() -> None:
    assert header_of(["a\r\nx: y", "\u00fc" * 100]) == b"a??x:?y, " + b"?" * 64
    assert header_of([f"n{at}" for at in range(20)]).endswith(b"n15, ...")


async def test_a_name_is_the_same_however_its_letters_are_written(codec: Codec) -> None:
    """JSON may write any letter as an escape; a conversation that goes on must not lose its begin by that."""
    backend = ScriptedBackend(says("x"))
    async with serving(backend, codec) as frontend:
        body = json.dumps({"model": MODEL, "input": "Hi"}).encode()
        first = await exchange(frontend.port, http_request("POST", "/v1/responses", body))
        for name in (rb"previous_response_id", rb"previous_response_\u0069d", rb"previous\u005Fresponse\u005fid"):
            goes_on = body[:-1] + b', "' + name + b'": "' + first.json["id"].encode() + b'"}'
            assert (await exchange(frontend.port, http_request("POST", "/v1/responses", goes_on))).status == 200
    lengths = [len(request.prompt_ids) for request in backend.requests]
    assert lengths[0] < lengths[1] == lengths[2] == lengths[3]
