"""Fuzzed bodies over every endpoint, before simulated engines over real sockets: each is answered, none with a 5xx, and
what is refused says what is wrong and where. The same server answers on, and holds nothing at the end.

Many more, by hand: DISAGG_FUZZED_BODIES=200000 DISAGG_FUZZ_SEED=7 pytest tests/robustness/test_no_body_gives_a_5xx.py
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
from collections import Counter
from itertools import cycle

import psutil
import pytest
import uvloop
from fuzz_scene import FuzzScene
from fuzzed_bodies import GOOD, Sent, requests
from hypothesis import HealthCheck, Phase, given, seed, settings, strategies
from strictly import events, json_of, read_error

from tests.frontend.reading import needs_sglang

pytestmark = needs_sglang
QUICK, SLOW = 400, int(os.environ.get("DISAGG_FUZZED_BODIES", "20000"))
SEED = int(os.environ.get("DISAGG_FUZZ_SEED", "16"))
AT_ONCE = 8
ANSWER_S = 30.0
GROWTH_MIB_MAX = 200.0  # ten thousand timelines and conversations are kept
# Errors that are of a body, a head or an endpoint as a whole: no field is to blame.
OF_NO_FIELD = {
    "invalid_json", "invalid_type", "unsupported_content_encoding", "request_too_large", "malformed_request",
    "malformed_body", "http_version", "transfer_coding", "expectation", 
    "forbidden", "cache_not_flushed", "too_complex", "unknown_url", "method_not_allowed",
}  # fmt: skip


async def said_to(port: int, sent: Sent) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(sent.data)
        if sent.ends:
            writer.write_eof()
        return await asyncio.wait_for(reader.read(), ANSWER_S)  # no reset, no hang
    finally:
        writer.close()


def body_of(head: bytes, rest: bytes) -> bytes:
    if b"\r\ntransfer-encoding: chunked" not in head:
        return rest
    body = b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size, 16)
        body, rest = body + rest[:length], rest[length + 2 :]
        if length == 0:
            break
    return body


def assert_says_what_would_do(sent: Sent, status: int, body: bytes) -> None:
    """What is wrong with a head is told before anybody knows whose words its API has."""
    is_of_messages = sent.path.startswith("/v1/messages") and json_of(body).get("type") == "error"
    error = read_error("messages" if is_of_messages else "chat", body)
    if is_of_messages:
        assert status != 400 or re.search("'|body", error["message"]), error
    else:
        assert sent.path != "/v1/messages" or error["code"] in OF_NO_FIELD, error
        assert error["param"] is not None or error["code"] in OF_NO_FIELD, error


def assert_is_right(sent: Sent, said: bytes) -> int:
    said = re.sub(rb"\AHTTP/1.1 100 Continue\r\n\r\n", b"", said)
    head, blank, rest = said.partition(b"\r\n\r\n")
    found = re.match(rb"HTTP/1\.[01] (\d{3}) ", head)
    assert blank, said
    assert found, said
    status, body = int(found[1]), body_of(head.lower(), rest)
    assert status < 500 or (not sent.is_http and status in (501, 505)), said
    if status >= 400:
        assert_says_what_would_do(sent, status, body)
    elif b"text/event-stream" in head:
        for _, data in events(re.sub(rb"(?m)^:\n\n", b"", body), named=sent.path.startswith(("/v1/resp", "/v1/mess"))):
            event = {} if data == "[DONE]" else json_of(data)
            assert not event.get("error"), event
    elif b"text/plain" in head:
        body.decode()
    else:
        json_of(body)
    return status


async def assert_good_ones_are_good(port: int) -> None:
    for path, bodies in GOOD.items():
        for body in bodies:
            head = "POST {} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {}\r\n\r\n"
            data = json.dumps(body).encode()
            sent = Sent(path, head.format(path, len(data)).encode() + data, ends=False)
            said = await said_to(port, sent)
            status = assert_is_right(sent, said)
            assert status == (409 if "lora" in path or path.startswith("/disagg") else 200), (path, body, said)


def fuzz(count: int, caplog: pytest.LogCaptureFixture) -> Counter[int]:
    statuses: Counter[int] = Counter()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        scene = FuzzScene()
        runner.run(scene.start())
        process = psutil.Process()
        before_mib = 0.0

        async def send(batch: list[Sent]) -> None:
            """To both frontends in turn."""
            asking = [said_to(port, sent) for port, sent in zip(cycle(scene.ports), batch, strict=False)]
            for sent, said in zip(batch, await asyncio.gather(*asking), strict=True):
                statuses[assert_is_right(sent, said)] += 1
            scene.service.begun.clear()

        @seed(SEED)
        @settings(
            max_examples=count // AT_ONCE,
            database=None,
            deadline=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        )
        @given(strategies.lists(requests(), min_size=AT_ONCE, max_size=AT_ONCE))
        def each(batch: list[Sent]) -> None:
            nonlocal before_mib
            runner.run(send(batch))
            if statuses.total() == 10 * AT_ONCE:
                before_mib = process.memory_info().rss / 2**20

        try:
            runner.run(assert_good_ones_are_good(scene.ports[0]))
            each()
            runner.run(scene.assert_healthy())
            grown_mib = process.memory_info().rss / 2**20 - before_mib
        finally:
            runner.run(scene.stop())  # else uvloop waits for ever for what still runs
        print(f"seed {SEED}: {sorted(statuses.items())}, grown by {grown_mib:.0f} MiB")
        assert grown_mib < GROWTH_MIB_MAX
    unforeseen = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert not unforeseen, unforeseen[0]
    assert statuses[200] > count // 20
    assert statuses[400] > count // 20
    return statuses


def test_some_bodies(caplog: pytest.LogCaptureFixture) -> None:
    fuzz(QUICK, caplog)


@pytest.mark.slow
@pytest.mark.timeout(120 + SLOW // 50)
def test_many_bodies(caplog: pytest.LogCaptureFixture) -> None:
    fuzz(SLOW, caplog)


def test_every_endpoint_that_takes_a_body_is_fuzzed() -> None:
    async def posts() -> set[str]:
        scene = FuzzScene()
        await scene.start()
        routes = scene.frontends[0]._routes.all.items()
        await scene.stop()
        return {path for path, route in routes if route.method == "POST"}

    known = {re.sub(r"/v1/(?=tokenize|detokenize)", "/", path) for path in asyncio.run(posts())}
    assert known == {"/disagg/engines/" if path.startswith("/disagg/engines") else path for path in GOOD}
