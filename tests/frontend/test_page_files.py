"""GET /disagg/: files for everybody, under a policy that runs nothing else; events for who may see the status."""

from __future__ import annotations

import asyncio
import re
import socket
import time

import pytest
from many_engines import ManyEngines
from scripted import ScriptedBackend, exchange, feed_of, http_request, says, serving, until

from disagg.frontend.http1 import Connection
from disagg.frontend.keys import Keys
from disagg.frontend.page import feed as feed_module
from disagg.frontend.page.files import FILES
from disagg.tokenizer.codec import Codec

KEY, ADMIN = "first-key-0123456789", "admin-key-0123456789"
UNREAD_BYTES_MAX = 300_000  # a snapshot of 1,000 ranks, and its history
KEYS = Keys([KEY], [ADMIN])


def get(path: str, *headers: str, method: str = "GET") -> bytes:
    return http_request(method, path, headers=headers)


async def test_files_are_everybodys_and_hold_no_secret(codec: Codec) -> None:
    async with serving(ScriptedBackend(says("Hi")), codec, keys=KEYS) as frontend:
        for path in ["/disagg/", *(f"/disagg/page/{name}" for name in FILES)]:
            answer = await exchange(frontend.port, get(path))
            assert (path, answer.status) == (path, 200)
            policy = answer.headers["content-security-policy"]
            assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
            assert "unsafe" not in policy
            assert "frame-ancestors 'none'" in policy
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["cache-control"] == "no-cache"


async def test_what_a_browser_has_is_not_sent_again(codec: Codec) -> None:
    async with serving(ScriptedBackend(says("Hi")), codec) as frontend:
        first = await exchange(frontend.port, get("/disagg/"))
        reader, writer = await asyncio.open_connection("127.0.0.1", frontend.port)
        writer.write(get("/disagg/", f"if-none-match: {first.headers['etag']}", "connection: close"))
        said = await asyncio.wait_for(reader.read(), 10)
        writer.close()
    assert said.startswith(b"HTTP/1.1 304 ")
    assert b"content-length" not in said
    assert said.endswith(b"\r\n\r\n")


async def test_the_folder_has_its_slash_and_nothing_leads_out_of_it(codec: Codec) -> None:
    async with serving(ScriptedBackend(says("Hi")), codec) as frontend:
        answer = await exchange(frontend.port, get("/disagg"))
        assert (answer.status, answer.headers["location"]) == (308, "disagg/")
        for name in ("", "none.js", "../feed.py", "..%2ffeed.py", "/etc/passwd", "%2e%2e/feed.py", "static/page.css"):
            assert (await exchange(frontend.port, get(f"/disagg/page/{name}"))).status == 404


def test_no_file_names_another_place_or_makes_html() -> None:
    for name, file in FILES.items():
        text = file.body.decode()
        assert not re.search(r"https?://", text.replace("http://www.w3.org/2000/svg", "")), name
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|style=|\bon\w+=\"", text
        ), name


@pytest.mark.parametrize(("key", "status"), [("", 401), ("wrong-key-0123456789", 401), (KEY, 403)])
async def test_events_are_for_who_may_see_the_status(codec: Codec, key: str, status: int) -> None:
    async with serving(ScriptedBackend(says("Hi")), codec, keys=KEYS) as frontend:
        for path in ("/disagg/events", "/disagg/status"):
            answer = await exchange(frontend.port, get(path, *([f"authorization: Bearer {key}"] if key else [])))
            assert (path, answer.status) == (path, status)


@pytest.mark.parametrize("then", [[], [ADMIN]], ids=["opens nothing", "is an operator's"])
async def test_events_end_with_what_the_key_opens(
    codec: Codec, monkeypatch: pytest.MonkeyPatch, then: list[str]
) -> None:
    monkeypatch.setattr(feed_module, "TICK_S", 0.02)
    keys = Keys([KEY, ADMIN])
    async with serving(ScriptedBackend(says("Hi")), codec, keys=keys) as frontend:
        reader, writer = await asyncio.open_connection("127.0.0.1", frontend.port)
        writer.write(get("/disagg/events", f"authorization: Bearer {ADMIN}", "connection: close"))
        await asyncio.wait_for(reader.readuntil(b'"type":"tick"'), 10)
        keys.hold([KEY], (), then)
        rest = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        assert b": the key opens this no longer\n\n" in rest


async def test_events_until_the_client_leaves(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "TICK_S", 0.01)
    backend = ScriptedBackend(says("Hi"))
    async with serving(backend, codec, keys=KEYS) as frontend:
        head = await exchange(frontend.port, get("/disagg/events", f"x-api-key: {ADMIN}", method="HEAD"))
        assert (head.status, head.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
        reader, writer = await asyncio.open_connection("127.0.0.1", frontend.port)
        writer.write(get("/disagg/events", f"authorization: Bearer {ADMIN}"))
        for words in (b"event: snapshot\n", b"event: requests\n", b"event: tick\n"):
            await asyncio.wait_for(reader.readuntil(words), 10)
        writer.close()
        await until(lambda: not runs())
        number = backend.feed.number
        await asyncio.sleep(0.1)
        assert backend.feed.number == number


async def test_an_open_page_does_not_hold_up_the_frontends_stop(codec: Codec) -> None:
    backend = ScriptedBackend(says("Hi"))
    async with serving(backend, codec) as frontend:
        reader, writer = await asyncio.open_connection("127.0.0.1", frontend.port)
        writer.write(get("/disagg/events"))
        await asyncio.wait_for(reader.readuntil(b"event: snapshot\n"), 10)
        began_s = time.monotonic()
        await frontend.stop(20)
        assert time.monotonic() - began_s < 5
        assert (await asyncio.wait_for(reader.read(), 10)).endswith(b"0\r\n\r\n")
        writer.close()


async def test_a_client_that_leaves_as_the_frontend_stops_is_no_error(
    codec: Codec, caplog: pytest.LogCaptureFixture
) -> None:
    backend = ScriptedBackend(says("Hi"))
    async with serving(backend, codec) as frontend:
        reader, writer = await asyncio.open_connection("127.0.0.1", frontend.port)
        writer.write(get("/disagg/events"))
        await asyncio.wait_for(reader.readuntil(b"event: snapshot\n"), 10)
        writer.transport.abort()
        await asyncio.sleep(
            0
        )  # it is closed, and the frontend has not been told: its last word will be answered by a reset
        await frontend.stop(1)
    assert "nobody foresaw" not in caplog.text


async def test_one_page_too_many_is_refused(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "VIEWERS_MAX", 0)
    async with serving(ScriptedBackend(says("Hi")), codec) as frontend:
        answer = await exchange(frontend.port, get("/disagg/events"))
        assert (answer.status, answer.json["error"]["code"]) == (503, "frontend_full")


async def test_what_a_page_does_not_read_is_not_kept(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its events are skipped while one waits to be taken: there is never more than that one."""
    monkeypatch.setattr(feed_module, "TICK_S", 0.005)
    backend = ScriptedBackend(says("Hi"), feed=feed_of(ManyEngines(1000)))
    async with serving(backend, codec) as frontend:
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", frontend.port))
        await until(lambda: len(frontend._server.door.connections) == 1)
        (connection,) = frontend._server.door.connections
        assert isinstance(connection, Connection)
        connection.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        await asyncio.get_running_loop().sock_sendall(client, get("/disagg/events"))
        await until(lambda: backend.feed.number > 100)
        assert connection.transport.get_write_buffer_size() < UNREAD_BYTES_MAX
        client.close()
        await until(lambda: not runs())


def runs() -> bool:
    return any(task.get_name() == "the page's feed" for task in asyncio.all_tasks())
