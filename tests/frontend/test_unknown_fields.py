"""Fields that nobody foresaw: left out and named, or refused; what is not for clients is refused either way."""

from __future__ import annotations

import json
from typing import Any

import pytest

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


async def test_a_long_body_too(codec: Codec) -> None:
    async with serving(ScriptedBackend(says("x")), codec, refuses_unknown=False) as frontend:
        answer = await exchange(frontend.port, ask("/v1/completions", prompt=[1] * 400, metadata="m" * 40_000, other=1))
    assert (answer.status, answer.headers["x-disagg-ignored-fields"]) == (200, "other")


def test_no_name_breaks_the_header() -> None:
    assert header_of(["a\r\nx: y", "\u00fc" * 100]) == b"a??x:?y, " + b"?" * 64
    assert header_of([f"n{at}" for at in range(20)]).endswith(b"n15, ...")
