"""Which host reads a body, and what happens when it is lost, busy, or there is none."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from scripted import MODEL, until
from two_frontends import Host, Scene, scene

from disagg.errors import BadRequest, Overloaded, ReaderLost
from disagg.registry.table import Table
from disagg.roles import Role

TEXT = "/v1/completions"
BODY = {"model": MODEL, "prompt": "Hi", "max_tokens": 3}


async def never(_endpoint: str) -> None:
    await asyncio.Event().wait()


def raising(error: Exception) -> Any:
    async def before(endpoint: str) -> None:
        if endpoint != "facts":
            raise error

    return before


async def reads(made: Scene) -> Host:
    """The host that has a body now."""
    await until(lambda: any(host.reader.endpoints and host.reader.endpoints[-1] == "text" for host in made.hosts))
    return next(host for host in made.hosts if "text" in host.reader.endpoints)


async def test_hosts_of_every_role_read_in_turn(tmp_path: Path) -> None:
    async with scene(tmp_path, Role.PREFILL, Role.DECODE, Role.DECODE, Role.EMBEDDING) as made:
        for _ in range(8):
            assert (await made.engine.post(TEXT, BODY)).status_code == 200
        assert [host.reader.endpoints.count("text") for host in made.hosts] == [2, 2, 2, 2]


async def test_a_host_that_dies_while_it_reads_costs_the_client_nothing(tmp_path: Path) -> None:
    async with scene(tmp_path) as made:
        await made.engine.tokenization.ready()
        for host in made.hosts:
            host.reader.before = never
        asked = asyncio.create_task(made.engine.post(TEXT, BODY))
        dying = await reads(made)
        for host in made.hosts:
            host.reader.before = lambda _endpoint: asyncio.sleep(0)
        if dying.life.startswith("prefill"):  # the pair is still needed: cut the connections, and no more
            for session in list(dying.server.sessions):
                session.connection.close("cut")  # type: ignore[union-attr]
        else:
            dying.server.close()
        assert (await asked).status_code == 200
        assert sum("text" in host.reader.endpoints for host in made.hosts) == 2


async def test_a_client_that_leaves_ends_the_reading(tmp_path: Path) -> None:
    async with scene(tmp_path) as made:
        await made.engine.tokenization.ready()
        for host in made.hosts:
            host.reader.before = never
        asked = asyncio.create_task(made.engine.post(TEXT, BODY))
        reading = await reads(made)
        asked.cancel()
        await until(lambda: reading.reader.cancelled == 1)
        assert all(client.reading == 0 for client in made.engine.connections.clients.values())


async def test_without_a_host_a_request_waits_and_then_hears_503(tmp_path: Path) -> None:
    async with scene(tmp_path) as made:
        view = made.registry.view()
        made.engine.connections.apply(Table().view())
        answer = await made.engine.post(TEXT, BODY)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_ready_pair")
        asked = asyncio.create_task(made.engine.post(TEXT, BODY))
        await until(lambda: bool(made.engine.connections._waiting))
        made.engine.connections.apply(view)  # one comes in time
        assert (await asked).status_code == 200


async def test_the_requests_own_deadline_holds(tmp_path: Path) -> None:
    async with scene(tmp_path) as made:
        await made.engine.tokenization.ready()
        made.engine.tokenization._limits = made.engine.tokenization._limits.__class__(request_s=0.1)
        for host in made.hosts:
            host.reader.before = never
        answer = await made.engine.post(TEXT, BODY)
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")


@pytest.mark.parametrize(
    ("error", "status", "code", "asked"),
    [
        (Overloaded("readers", "full"), 429, "overloaded", 3),  # each host is asked once
        (ReaderLost("reader", "the process that read this request ended", "try again"), 503, "reader_lost", 1),
        (BadRequest(None, "too_complex", "this request takes too long to read"), 400, "too_complex", 1),
        (ZeroDivisionError(), 503, "reader_lost", 1),
    ],
)
async def test_what_a_host_cannot_read_is_told(
    tmp_path: Path, error: Exception, status: int, code: str, asked: int
) -> None:
    async with scene(tmp_path) as made:
        await made.engine.tokenization.ready()
        for host in made.hosts:
            host.reader.before = raising(error)
        answer = await made.engine.post(TEXT, BODY)
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
        assert sum(host.reader.endpoints.count("text") for host in made.hosts) == asked
        for host in made.hosts:
            host.reader.before = lambda _endpoint: asyncio.sleep(0)
        assert (await made.engine.post(TEXT, BODY)).status_code == 200


async def test_a_full_host_refuses_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("disagg.process.text_service.BODIES_MAX", 1)
    async with scene(tmp_path, Role.PREFILL, Role.DECODE) as made:
        await made.engine.tokenization.ready()
        for host in made.hosts:
            host.reader.before = never
        asked = [asyncio.create_task(made.engine.post(TEXT, BODY)) for _ in made.hosts]
        await until(lambda: all("text" in host.reader.endpoints for host in made.hosts))
        answer = await made.engine.post(TEXT, BODY)
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "overloaded")
        for task in asked:
            task.cancel()


async def test_long_bodies_at_once_end_no_connection(tmp_path: Path) -> None:
    """A connection with more to write than its peer takes is ended, and what runs on that engine with it."""
    async with scene(tmp_path, Role.PREFILL, Role.DECODE) as made:
        await made.engine.tokenization.ready()
        for host in made.hosts:
            host.reader.before = never
        clients = list(made.engine.connections.clients.values())
        body = b" " * (8 << 20)
        asked = [asyncio.create_task(made.engine.tokenization.read(body, "text")) for _ in range(20)]
        done, waiting = await asyncio.wait(asked, timeout=1.0)
        refused = [type(task.exception()) for task in done]
        for task in waiting:
            task.cancel()
        assert refused == [Overloaded] * 12, "a host has 32 MiB to read, and no more"
        assert list(made.engine.connections.clients.values()) == clients
        await until(lambda: not made.engine.tokenization._being_read)
        for host in made.hosts:
            host.reader.before = lambda _endpoint: asyncio.sleep(0)
        assert (await made.engine.post(TEXT, BODY)).status_code == 200


async def test_a_leg_that_wants_text_of_a_host_without_a_tokenizer_ends(tmp_path: Path) -> None:
    async with scene(tmp_path) as made:
        await made.engine.tokenization.ready()
        for host in made.hosts[1:]:
            host.server.texts = None
        answer = await made.engine.post(TEXT, BODY)
        assert made.hosts[0].reader.endpoints.count("text") == 1, "another host is asked"
        assert answer.status_code == 502
        assert "tokenizer" in answer.text
