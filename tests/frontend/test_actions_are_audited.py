"""Whoever does something to a deployment is in the log, under the name `audit`, and in the story: never the key."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest
from scripted import ScriptedBackend, ask, exchange, hangs, http_request, says, serving, until

from disagg.cli.events import sentence
from disagg.frontend.app import Frontend
from disagg.frontend.key_limits import LimitedKey
from disagg.frontend.keys import Keys, digest
from disagg.tokenizer.codec import Codec

TEAM, BARE, ADMIN, SECOND = (f"{name}-key-0123456789" for name in ("team", "bare", "admin", "second"))
AS_ADMIN, AS_SECOND = (f"admin-key-{digest(key.encode()).hex()[:8]}" for key in (ADMIN, SECOND))  # wherever they are
KEYS = Keys()
KEYS.hold([BARE], [LimitedKey(key=TEAM, name="team-a")], [ADMIN, SECOND])
DRAIN = "/disagg/engines/prefill-0/drain"


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    assert not any(key in caplog.text for key in (TEAM, BARE, ADMIN, SECOND))
    return [json.loads(record.getMessage()) for record in caplog.records if record.name == "audit"]


async def does(frontend: Frontend, key: str, method: str, path: str, body: Any = None) -> int:
    sent = b"" if body is None else json.dumps(body).encode()
    headers = [f"authorization: Bearer {key}"] if key else []
    return (await exchange(frontend.port, http_request(method, path, sent, headers))).status


@pytest.fixture(autouse=True)
def _from_info_on(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "audit")


async def test_who_what_when_from_where_and_what_came_of_it(codec: Codec, caplog: pytest.LogCaptureFixture) -> None:
    backend = ScriptedBackend(says("Hi"))
    async with serving(backend, codec, keys=KEYS) as frontend:
        assert await does(frontend, SECOND, "POST", f"{DRAIN}?restart=1") == 200
        assert await does(frontend, ADMIN, "POST", "/disagg/engines/nobody/drain") == 409
        assert await does(frontend, ADMIN, "POST", "/load_lora_adapter", {"lora_name": "sql", "lora_path": "/x"}) < 500
        assert await does(frontend, ADMIN, "GET", "/flush_cache") < 500
    told = lines(caplog)
    assert [(each["who"], each["what"], each["result"]) for each in told[:2]] == [
        (AS_SECOND, "drain prefill-0 --restart", "done"),
        (AS_ADMIN, "drain nobody", "cannot_drain"),
    ]
    assert [each["what"] for each in told[2:]] == ["load adapter sql from /x", "GET /flush_cache"]
    assert {each["from"] for each in told} == {"127.0.0.1"}
    assert all(each["at"].endswith("Z") for each in told)


async def test_who_may_not_and_who_only_looks_are_not_in_it(codec: Codec, caplog: pytest.LogCaptureFixture) -> None:
    """Else whoever reaches the port could fill the log."""
    async with serving(ScriptedBackend(says("Hi")), codec, keys=KEYS) as frontend:
        assert await does(frontend, "", "POST", DRAIN) == 401
        assert await does(frontend, TEAM, "POST", DRAIN) == 403
        assert await does(frontend, ADMIN, "GET", "/disagg/status") == 200
        assert await does(frontend, ADMIN, "GET", "/disagg/logs/prefill-0") == 200
        assert (await exchange(frontend.port, ask().replace(b"host:", f"x-api-key: {TEAM}\r\nhost:".encode()))).status
    assert lines(caplog) == []


async def test_a_client_that_cancels_its_request(codec: Codec, caplog: pytest.LogCaptureFixture) -> None:
    backend = ScriptedBackend(hangs("Hi"))
    async with serving(backend, codec, keys=KEYS) as frontend:
        asking = ask().replace(b"host:", f"x-api-key: {TEAM}\r\nhost:".encode())
        task = asyncio.create_task(exchange(frontend.port, asking))
        await until(lambda: bool(backend.requests))
        assert await does(frontend, TEAM, "DELETE", f"/v1/requests/{backend.requests[0].id}") == 200
        task.cancel()
    assert [(each["who"], each["what"]) for each in lines(caplog)] == [("team-a", f"cancel {backend.requests[0].id}")]
    assert not backend.feed._story.chapters


@pytest.mark.parametrize("key", [TEAM, ADMIN])
async def test_what_is_not_there_to_be_cancelled_is_not_in_it(
    codec: Codec, caplog: pytest.LogCaptureFixture, key: str
) -> None:
    """Else any client could fill the log, and the story."""
    backend, unknown = ScriptedBackend(hangs("Hi")), "0" * 32
    async with serving(backend, codec, keys=KEYS) as frontend:
        asking = ask().replace(b"host:", f"x-api-key: {BARE}\r\nhost:".encode())
        task = asyncio.create_task(exchange(frontend.port, asking))
        await until(lambda: bool(backend.requests))
        of_another = [backend.requests[0].id] if key == TEAM else []
        for request_id in (unknown, *of_another):
            assert await does(frontend, key, "DELETE", f"/v1/requests/{request_id}") == 404
            assert await does(frontend, key, "POST", "/abort_request", {"rid": request_id}) == 200
        task.cancel()
    assert lines(caplog) == []
    assert not backend.feed._story.chapters


async def test_an_operator_cancels_by_either_route(codec: Codec, caplog: pytest.LogCaptureFixture) -> None:
    """The story has it without the id, as without admin keys others' requests are not every reader's."""
    backend = ScriptedBackend(hangs("Hi"))
    async with serving(backend, codec, keys=KEYS) as frontend:
        asking = ask().replace(b"host:", f"x-api-key: {TEAM}\r\nhost:".encode())
        tasks = [asyncio.create_task(exchange(frontend.port, asking)) for _ in range(2)]
        await until(lambda: len(backend.requests) == 2)
        one, other = (each.id for each in backend.requests)
        assert await does(frontend, ADMIN, "DELETE", f"/v1/requests/{one}") == 200
        assert await does(frontend, ADMIN, "POST", "/abort_request", {"rid": other}) == 200
        for task in tasks:
            task.cancel()
    assert [(each["who"], each["what"]) for each in lines(caplog)] == [
        (AS_ADMIN, f"cancel {one}"),
        (AS_ADMIN, f"cancel {other}"),
    ]
    (chapter,) = backend.feed._story.chapters
    assert (chapter.subjects, chapter.detail, chapter.count) == ([AS_ADMIN], "cancel a request", 2)


async def test_a_client_that_left_may_have_done_it(codec: Codec, caplog: pytest.LogCaptureFixture) -> None:
    class Slow(ScriptedBackend):
        async def flush_caches(self, wait_s: float) -> dict[str, str]:
            self.flushed.append(wait_s)
            await asyncio.Event().wait()
            return {}

        async def drain(self, engine_id: str, restart: bool) -> str | None:
            self.drained.append((engine_id, restart))
            await asyncio.Event().wait()
            return None

    backend = Slow(says("Hi"))
    async with serving(backend, codec, keys=KEYS) as frontend:
        task = asyncio.create_task(does(frontend, ADMIN, "POST", "/flush_cache"))
        await until(lambda: bool(backend.flushed))
        task.cancel()
        await until(lambda: bool(lines(caplog)))
        task = asyncio.create_task(does(frontend, ADMIN, "POST", DRAIN))
        await until(lambda: bool(backend.drained))
    assert await task == 503
    assert [each["result"] for each in lines(caplog)] == [
        "its client left; it may have been done",
        "the frontend stopped; it may have been done",
    ]


async def test_what_is_written_there_is_one_line(codec: Codec, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(ScriptedBackend(says("Hi")), codec) as frontend:
        path = "/disagg/engines/x%0a%1b[31m" + "y" * 500 + "/drain"
        assert await does(frontend, "", "POST", path) == 409
    (record,) = [each for each in caplog.records if each.name == "audit"]
    assert record.getMessage().isprintable()
    assert len(record.getMessage()) < 500
    assert lines(caplog)[0]["who"] == "nobody's key"


async def test_it_is_in_the_story(codec: Codec) -> None:
    backend = ScriptedBackend(says("Hi"))
    async with serving(backend, codec, keys=KEYS) as frontend:
        await does(frontend, ADMIN, "POST", DRAIN)
        story = backend.feed._story.chapters
    assert sentence(
        {"at_s": 0.0, "kind": story[-1].kind, "subjects": story[-1].subjects, "count": 1, "detail": story[-1].detail}
    ).endswith(f"  {AS_ADMIN} did: drain prefill-0")
