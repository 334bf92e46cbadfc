"""What is long is read by another process: the same answers, and nothing it does stops or harms this one."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from scripted import CONTEXT, MODEL, Answer, ScriptedBackend, ask, exchange, http_request, says, serving, until

from disagg.adapters import Served
from disagg.errors import BadRequest, Overloaded
from disagg.frontend import readers
from disagg.frontend.readers import READERS_MAX, Readers
from disagg.frontend.reading import read
from disagg.process import body_readers
from disagg.process.body_readers import LONG_NICENESS
from disagg.tokenizer.codec import Codec, load_codec
from disagg.tokenizer.overrides import Overrides
from disagg.tokenizer.short_bodies import SHORT_BRACES, SHORT_BYTES, SHORT_BYTES_SLOW, is_short

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
LONG = {"metadata": {"a": "b" * SHORT_BYTES}}  # ignored, and not short
MESSAGE = b'{"role":"user","content":""}'

REFUSED: list[tuple[str, dict[str, Any]]] = [
    (CHAT, {"model": "other"}),
    (CHAT, {"messages": [{"role": "assistant", "content": "Hi"}]}),
    (CHAT, {"seed": 1.5}),
    (CHAT, {"unknown\u2028": 1}),
    (TEXT, {"prompt": [5000]}),
    (TEXT, {"prompt": "x" * CONTEXT}),
    (TEXT, {"max_tokens": CONTEXT}),
    (TEXT, {"prompt": ""}),
]
HOSTILE = {
    "messages": b'{"model":"scripted","messages":[' + b",".join([MESSAGE] * 60_000) + b"]}",
    "lists": b'{"model":"scripted","metadata":[' + b",".join([b"[]"] * 600_000) + b'],"messages":[' + MESSAGE + b"]}",
    "ids": b'{"model":"scripted","prompt":[' + b",".join([b"1"] * 1_000_000) + b"]}",
    "names": b"{" + b",".join(b'"%07d":1' % number for number in range(150_000)) + b"}",
    "parts": b'{"model":"scripted","messages":[{"role":"user","content":['
    + b",".join([b'{"type":"text","text":""}'] * 75_000)
    + b"]}]}",
}


def children() -> list[int]:
    return [each.pid for each in psutil.Process().children() if "disagg.frontend.reader" in each.cmdline()]


async def long(port: int, path: str = CHAT, **changes: Any) -> Answer:
    return await exchange(port, ask(path, **LONG, **changes), limit_s=60)


async def test_a_long_body_means_what_it_means_when_short(codec: Codec) -> None:
    asked = {
        "max_tokens": 7,
        "stop": ["x"],
        "seed": -(2**63),
        "temperature": 0.5,
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_token_ids": True,
    }
    backend = ScriptedBackend(says("Hi"))
    async with serving(backend, codec) as frontend:
        for path, more in (
            (TEXT, {"prompt": [1, 2, 258]}),
            (CHAT, {"chat_template_kwargs": {"a": [1.5, None, {"é": "b"}]}}),
        ):
            short = await exchange(frontend.port, ask(path, **asked, **more))
            other = await long(frontend.port, path, **asked, **more)
            assert short.status == other.status == 200
            first, second = backend.requests[-2:]
            for name in ("prompt_ids", "sampling", "max_tokens", "end_ids"):
                assert getattr(first, name) == getattr(second, name)
            assert other.body.count(b"data:") == short.body.count(b"data:")


async def test_and_is_refused_in_the_same_words(codec: Codec) -> None:
    async with serving(ScriptedBackend(says("Hi")), codec) as frontend:
        for path, changes in REFUSED:
            short = await exchange(frontend.port, ask(path, **changes))
            other = await long(frontend.port, path, **changes)
            assert (short.status, short.body) == (other.status, other.body)
            assert short.status in (400, 404)


async def test_the_event_loop_does_not_read_it(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a measurement of time: this process reads nothing, whatever the body's shape."""

    def here(*_: object) -> None:
        raise AssertionError("read in the event loop")

    monkeypatch.setattr(readers, "read", here)
    async with serving(ScriptedBackend(says("Hi")), codec) as frontend:
        for kind, body in HOSTILE.items():
            path = TEXT if kind == "ids" else CHAT
            answer = await exchange(frontend.port, http_request("POST", path, body), limit_s=120)
            assert (kind, answer.status) == (kind, 200 if kind == "lists" else 400)
            assert len(answer.body) < 1000


async def test_a_long_body_gets_the_deployments_sampling_defaults(codec: Codec) -> None:
    overrides = Overrides(sampling_defaults={"temperature": 0, "top_k": 5})
    some = Readers(load_codec(codec.folder, overrides), lambda: Served(MODEL))
    long_body, short_body = (ask(CHAT, **more).partition(b"\r\n\r\n")[2] for more in (LONG, {}))
    try:
        asked = [await some.read(body, "chat") for body in (long_body, short_body)]
        assert len(children()) == 1, "the long one was not read by another process"
    finally:
        await some.stop()
    assert [each.sampling for each in asked] == [{"temperature": 0, "top_k": 5}] * 2


@pytest.mark.parametrize("kind", ["messages", "ids"])
def test_more_entries_than_the_context_has_tokens_are_counted_and_not_looked_at(codec: Codec, kind: str) -> None:
    with pytest.raises(BadRequest) as refused:
        read(HOSTILE[kind], "text" if kind == "ids" else "chat", Served(MODEL), codec)
    assert refused.value.code == "context_length_exceeded"


async def test_a_body_that_takes_too_long_ends_its_reader_alone(codec: Codec) -> None:
    few = Readers(codec, lambda: Served(MODEL), read_s=0.001)
    try:
        with pytest.raises(BadRequest) as refused:
            await few.read(HOSTILE["parts"], "chat")
        assert refused.value.code == "too_complex"
        assert children() == []
    finally:
        await few.stop()


async def test_a_reader_that_is_killed_costs_its_request_and_no_other(codec: Codec) -> None:
    async with serving(ScriptedBackend(says("Hi")), codec) as frontend:
        assert (await long(frontend.port)).status == 200
        (pid,) = children()
        os.kill(pid, signal.SIGSTOP)  # so that it is at work when it dies
        asked = asyncio.create_task(long(frontend.port))
        await asyncio.sleep(0.1)
        os.kill(pid, signal.SIGKILL)
        lost = await asked
        assert (lost.status, lost.json["error"]["code"]) == (503, "reader_lost")
        assert (await long(frontend.port)).status == 200
        assert (await exchange(frontend.port, ask())).status == 200


async def test_where_no_reader_can_start_its_request_is_told(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    async with serving(ScriptedBackend(says("Hi")), codec) as frontend:
        await frontend.start_reader()
        answer = await long(frontend.port)
        assert (answer.status, answer.json["error"]["code"]) == (503, "reader_lost")
        assert (await exchange(frontend.port, ask())).status == 200


async def test_there_are_no_more_readers_than_allowed_and_none_is_left(codec: Codec) -> None:
    backend = ScriptedBackend(says("Hi"))
    async with serving(backend, codec) as frontend:
        answers = await asyncio.gather(*(long(frontend.port) for _ in range(12)))
        assert [answer.status for answer in answers] == [200] * 12
        assert 1 <= len(children()) <= READERS_MAX
    assert children() == []


async def test_all_that_a_reader_does_gives_way_to_streams(codec: Codec) -> None:
    async with serving(ScriptedBackend(says("Hi")), codec) as frontend:
        assert (await long(frontend.port)).status == 200
        (pid,) = children()
        threads = [int(each.name) for each in Path(f"/proc/{pid}/task").iterdir()]
        given_way = {os.getpriority(os.PRIO_PROCESS, thread) for thread in threads}
        assert given_way == {min(os.nice(0) + LONG_NICENESS, 19)}


async def test_a_reader_ends_with_its_frontend_even_if_that_is_killed(codec: Codec) -> None:
    some = Readers(codec, lambda: Served(MODEL))
    await some.start()
    (pid,) = children()
    process = psutil.Process(pid)
    some.processes._idle[0]._input.close()  # what is left of a killed process: its end of the pipe is closed
    await until(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE, limit_s=30)
    await some.stop()


async def test_all_readers_stay_busy_and_the_next_one_is_told(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_readers, "WAIT_S", 0.2)
    some = Readers(codec, lambda: Served(MODEL))
    body = ask(max_tokens=0, **LONG).partition(b"\r\n\r\n")[2]
    try:
        for _ in range(READERS_MAX):
            await some.start()
        stopped = children()
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        asked = [asyncio.create_task(some.read(body, "chat")) for _ in range(READERS_MAX)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await some.read(body, "chat")
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
        ended = await asyncio.gather(*asked, return_exceptions=True)
        assert [type(each) for each in ended] == [BadRequest] * READERS_MAX
    finally:
        await some.stop()


async def test_what_waits_for_a_reader_has_a_limit_in_bytes(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    body = ask(max_tokens=0, **LONG).partition(b"\r\n\r\n")[2]
    monkeypatch.setattr(body_readers, "HELD_BYTES_MAX", 3 * len(body))
    some = Readers(codec, lambda: Served(MODEL))
    try:
        ended = await asyncio.gather(*(some.read(body, "chat") for _ in range(5)), return_exceptions=True)
        assert [type(each) for each in ended] == [BadRequest] * 3 + [Overloaded] * 2
        with pytest.raises(BadRequest):
            await some.read(body, "chat")  # they have given back what they held
    finally:
        await some.stop()


@pytest.mark.parametrize(
    ("data", "short"),
    [
        (b" " * SHORT_BYTES, True),
        (b" " * (SHORT_BYTES + 1), False),
        (b"{" * SHORT_BRACES, True),
        (MESSAGE * (SHORT_BRACES + 1), False),
        (b"", True),
    ],
)
def test_bytes_and_braces_say_what_is_short(codec: Codec, data: bytes, short: bool) -> None:
    if not codec.encoder.is_fast:
        assert len(data) <= SHORT_BYTES_SLOW or not is_short(data, is_fast=False, endpoint="chat")
        return
    assert is_short(data, is_fast=True, endpoint="chat") is short
