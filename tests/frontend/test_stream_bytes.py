"""What a stream looks like on the wire, to the byte and to the segment."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
import uvloop
from scripted import Answer, ScriptedBackend, ask, exchange, fails, http_request, says, serving

from disagg.errors import LegLost, NoReadyPair
from disagg.tokenizer.codec import Codec

GOLDEN = Path(__file__).parent / "golden"
CREATED = re.compile(rb'"created":\d+')


async def answered(codec: Codec, backend: ScriptedBackend, request: bytes) -> Answer:
    async with serving(backend, codec) as frontend:
        return await exchange(frontend.port, request)


@pytest.mark.parametrize(
    ("name", "path", "include_usage"),
    [
        ("chat", "/v1/chat/completions", False),
        ("chat_usage", "/v1/chat/completions", True),
        ("text", "/v1/completions", False),
        ("text_usage", "/v1/completions", True),
    ],
)
async def test_golden_streams(codec: Codec, name: str, path: str, include_usage: bool) -> None:
    options = {"stream": True, "stream_options": {"include_usage": include_usage}}
    answer = await answered(codec, ScriptedBackend(says('He"l\n', "", "lo 🎾", reason="stop")), ask(path, **options))
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert CREATED.sub(b'"created":0', answer.body) == (GOLDEN / f"{name}.sse").read_bytes()


@pytest.mark.parametrize(("name", "path"), [("chat", "/v1/chat/completions"), ("text", "/v1/completions")])
async def test_golden_streams_with_token_ids(codec: Codec, name: str, path: str) -> None:
    """Every id is there, also of a step whose text is held back, and the prompt's are there once."""
    backend = ScriptedBackend(says('He"l\n', "", "lo 🎾", reason="stop"))
    answer = await answered(codec, backend, ask(path, stream=True, return_token_ids=True))
    assert CREATED.sub(b'"created":0', answer.body) == (GOLDEN / f"{name}_ids.sse").read_bytes()
    events = [json.loads(event.removeprefix(b"data: ")) for event in answer.body.split(b"\n\n")[:-2]]
    choices = [event["choices"][0] for event in events]
    prompts = [place["prompt_token_ids"] for place in (*events, *choices) if "prompt_token_ids" in place]
    assert prompts == [list(backend.requests[0].prompt_ids)]
    assert [each for choice in choices for each in choice.get("token_ids", ())] == [0, 1, 2]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize("include_usage", [True, False])
@pytest.mark.parametrize("return_token_ids", [True, False])
async def test_each_chunk_tells_the_usage_so_far(
    codec: Codec, path: str, include_usage: bool, return_token_ids: bool
) -> None:
    options = {"include_usage": include_usage, "continuous_usage_stats": True}
    backend = ScriptedBackend(says("one", "", "two", "three"))
    asking = ask(path, stream=True, stream_options=options, return_token_ids=return_token_ids)
    events = (await answered(codec, backend, asking)).body.split(b"\n\n")
    chunks = [json.loads(event.removeprefix(b"data: ")) for event in events[:-2]]
    prompt = len(backend.requests[0].prompt_ids)
    for chunk in chunks:
        usage = chunk["usage"]
        assert usage["prompt_tokens"] == prompt
        assert usage["total_tokens"] == prompt + usage["completion_tokens"]
    told = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert told == sorted(told)
    assert told[-1] == 4
    texts = [choice["delta"].get("content") if "delta" in choice else choice["text"] for choice in choices_of(chunks)]
    shown = [count for count, text in zip(told, texts, strict=False) if text]
    # The last piece comes with the end: all that the engine made is counted by then.
    assert shown == [1, 3, 4]
    assert (chunks[-1]["choices"] == []) is include_usage


def choices_of(chunks: list[Any]) -> list[Any]:
    return [choice for chunk in chunks for choice in chunk["choices"]]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_token_ids_of_a_whole_answer_only_if_asked_for(codec: Codec, path: str) -> None:
    backend = ScriptedBackend(says("one", "two"))
    asked = (await answered(codec, backend, ask(path, return_token_ids=True))).json
    choice = asked["choices"][0]
    holder = asked if "chat" in path else choice
    assert (holder["prompt_token_ids"], choice["token_ids"]) == (list(backend.requests[0].prompt_ids), [0, 1])
    plain = await answered(codec, backend, ask(path, return_token_ids=False))
    assert b"token_ids" not in plain.body


async def test_an_error_in_the_midst_ends_the_stream_without_done(codec: Codec) -> None:
    error = LegLost("10.0.0.7 room 5", "the decode engine died", "try again")
    answer = await answered(codec, ScriptedBackend(fails(error, "one")), ask(stream=True))
    events = answer.body.split(b"\n\n")
    assert answer.status == 200
    assert b'"content":"one"' in events[1]
    assert events[2:] == [
        b'data: {"error":{"message":"the decode engine died; try again","type":"server_error",'
        b'"param":null,"code":"leg_lost"}}',
        b"",
    ]


@pytest.mark.parametrize("stream", [True, False])
async def test_an_error_before_the_first_token_has_its_status(codec: Codec, stream: bool) -> None:
    answer = await answered(codec, ScriptedBackend(fails(NoReadyPair("f", "no engine"))), ask(stream=stream))
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    assert answer.json["error"]["code"] == "no_ready_pair"


async def test_an_unforeseen_error_tells_the_client_nothing(codec: Codec) -> None:
    answer = await answered(codec, ScriptedBackend(fails(KeyError("secret"))), ask())
    assert (answer.status, answer.json["error"]["code"]) == (500, "internal_error")
    assert b"secret" not in answer.body


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_headers_and_first_token_arrive_in_one_segment(codec: Codec, path: str) -> None:
    """Also on a kept-alive connection, on the loop that serves: uvloop sends two writes as two segments."""
    first: list[bytes] = []

    def client(port: int) -> None:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as peer:
            for _ in range(50):
                peer.sendall(ask(path, stream=True))
                data = peer.recv(65536)
                first.append(data)
                while not data.endswith(b"0\r\n\r\n"):
                    data += peer.recv(65536)
            peer.sendall(http_request("HEAD", "/health"))
            assert peer.recv(65536).startswith(b"HTTP/1.1 200 ")  # a head without a body is not held back

    async def serve() -> None:
        async with serving(ScriptedBackend(says("first", "second", gap_s=0.001)), codec) as frontend:
            thread = threading.Thread(target=client, args=(frontend.port,))
            thread.start()
            while thread.is_alive():
                await asyncio.sleep(0.01)

    uvloop.run(serve())
    assert len(first) == 50
    assert all(data.startswith(b"HTTP/1.1 200 ") and b"first" in data for data in first)
