"""No event and no answer holds a character that ends a line by Unicode's rules: they split no event."""

from __future__ import annotations

import json

import httpx
import pytest
from scripted import MODEL, ScriptedBackend, ask, exchange, fails, http_request, says, serving

from disagg.errors import LegLost
from disagg.frontend.responses import encode
from disagg.tokenizer.codec import Codec

ENDS = "\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"  # all that str.splitlines ends a line at
TEXTS = ["a\u2028b", "\u2029", "\x85x", ENDS, "\u2028\u2029\x85" * 3, "é\u2027\u202a\x84\x86 ok", "\\u2028"]
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


def test_these_are_all() -> None:
    assert {chr(point) for point in range(0x110000) if len(f"a{chr(point)}b".splitlines()) == 2} == set(ENDS)


@pytest.mark.parametrize("text", TEXTS)
def test_what_is_encoded_is_one_line_and_the_same_text(text: str) -> None:
    data = encode({"k" + text: [text]})
    assert len(data.decode().splitlines()) == 1
    assert json.loads(data) == {"k" + text: [text]}


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize("more", [{}, {"return_token_ids": True}, {"stream_options": {"include_usage": True}}])
async def test_a_client_that_splits_lines_by_unicode_reads_the_whole_stream(
    codec: Codec, path: str, more: dict[str, object]
) -> None:
    async with serving(ScriptedBackend(says(*TEXTS, gap_s=0.01)), codec) as frontend:
        body = ask(path, stream=True, **more).partition(b"\r\n\r\n")[2]
        url = f"http://127.0.0.1:{frontend.port}{path}"
        got = ""
        async with httpx.AsyncClient(trust_env=False) as client, client.stream("POST", url, content=body) as answer:
            async for line in answer.aiter_lines():
                if not line or line == "data: [DONE]":
                    continue
                for choice in json.loads(line.removeprefix("data: "))["choices"]:
                    got += choice["delta"].get("content", "") if path == CHAT else choice["text"]
    assert got == "".join(TEXTS)


async def test_whole_answers_and_errors_too(codec: Codec) -> None:
    async with serving(ScriptedBackend(says(*TEXTS)), codec) as frontend:
        answer = await exchange(frontend.port, ask())
        unknown = await exchange(frontend.port, http_request("GET", "/v1/models/a%E2%80%A8b"))
    assert answer.json["choices"][0]["message"]["content"] == "".join(TEXTS)
    assert "a\u2028b" in unknown.json["error"]["message"]
    assert len(answer.body.decode().splitlines()) == len(unknown.body.decode().splitlines()) == 1


async def test_an_error_in_a_streams_midst_too(codec: Codec) -> None:
    async with serving(ScriptedBackend(fails(LegLost("x", f"lost{ENDS}"), "Hi")), codec) as frontend:
        answer = await exchange(frontend.port, ask(stream=True))
    lines = [line for line in answer.body.decode().splitlines() if line]
    assert json.loads(lines[-1].removeprefix("data: "))["error"]["message"].startswith("lost\n")


async def test_and_the_models_name(codec: Codec) -> None:
    backend = ScriptedBackend(says("Hi"), model_name=f"{MODEL}\u2028")
    async with serving(backend, codec) as frontend:
        answer = await exchange(frontend.port, ask(stream=True, model=backend.model_name))
    events = [json.loads(line[6:]) for line in answer.body.decode().splitlines() if line and "[DONE]" not in line]
    assert {event["model"] for event in events} == {backend.model_name}
