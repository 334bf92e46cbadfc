"""An actor takes its standby for the next incarnation if it fits, and says why where it does not."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import msgspec
import pytest

from disagg.cluster import actors
from disagg.cluster.actors import EngineActor
from disagg.errors import StartError
from disagg.host_spec import HostSpec, Spare, StandbySpec, decode_spec, decode_standby, encode_spec
from disagg.process import standby as standby
from disagg.process.news import Exit, News, Ready, StandbyReady, Started, encode_news

SPEC = HostSpec(
    engine_id="a",
    incarnation=1,
    role="aggregated",
    arguments={},
    environment={"A": "1"},
    plane_host="127.0.0.1",
    log_path="",
    scratch="",
    fork=False,
)
READY: dict[str, Any] = {"pids": {"host": 1}, "spares": (Spare("scheduler"),), "unfit": ""}


class Reaper:
    """The other end of a pipe, in this process."""

    def __init__(self, module: str, pipe: socket.socket) -> None:
        self.module, self._pipe, self.standby, self.spec = module, pipe, None, None
        self.standby: StandbySpec | None
        self.spec: HostSpec | None

    async def hear(self) -> None:
        reader, self.writer = await asyncio.open_unix_connection(sock=self._pipe)
        if self.module.endswith("standby_reaper"):
            self.standby = decode_standby(await reader.readline())
        if line := await reader.readline():
            self.spec = decode_spec(line)
            self.say(Started(reaper=2, host=1))
            self.say(Ready(**READY))
        await reader.read()
        self.writer.close()

    def say(self, news: News) -> None:
        self.writer.write(encode_news(news) + b"\n")


@pytest.fixture
def reapers(monkeypatch: pytest.MonkeyPatch) -> list[Reaper]:
    made: list[Reaper] = []
    tasks = []

    def spawn_with_pipe(module: str, _environment: dict[str, str]) -> socket.socket:
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setblocking(False)
        made.append(Reaper(module, theirs))
        tasks.append(asyncio.get_running_loop().create_task(made[-1].hear()))
        return ours

    monkeypatch.setattr(standby, "spawn_with_pipe", spawn_with_pipe)
    monkeypatch.setattr(actors, "spawn_with_pipe", spawn_with_pipe)
    monkeypatch.setattr(standby.metadata, "version", {"sglang": "0.5.20"}.__getitem__)
    return made


async def _next(actor: EngineActor, **changes: Any) -> Ready:
    return await actor.start(encode_spec(msgspec.structs.replace(SPEC, **changes)), None, {})


async def _standby_is_ready(reapers: list[Reaper], sglang: str = "0.5.20") -> None:
    await asyncio.sleep(0.02)
    reapers[-1].say(StandbyReady([7], 1.0, 0, sglang))
    await asyncio.sleep(0.02)


async def test_the_next_incarnation_is_the_standby(reapers: list[Reaper]) -> None:
    actor = EngineActor()
    assert (await _next(actor)).way == "spawned"
    await actor.keep_spare()
    await actor.keep_spare()
    await _standby_is_ready(reapers)
    assert [reaper.module.rpartition(".")[2] for reaper in reapers] == ["reaper", "standby_reaper"]
    made_from = reapers[1].standby
    assert made_from is not None
    assert made_from.spares == (Spare("scheduler"),)
    assert made_from.environment["A"] == "1"
    await actor.end()
    assert (await _next(actor, incarnation=2)).way == "spare"
    assert reapers[1].spec is not None
    assert reapers[1].spec.life == "a#2"
    await actor.end()
    assert (await _next(actor, incarnation=3)).way == "spawned", "a standby is used once"
    await actor.end()


async def test_one_that_still_imports_is_taken(reapers: list[Reaper]) -> None:
    actor = EngineActor()
    await _next(actor)
    await actor.keep_spare()
    await actor.end()
    assert (await _next(actor, incarnation=2)).way == "spare, still importing"
    await actor.end()


@pytest.mark.parametrize(
    ("sglang", "environment", "limit_s", "why"),
    [
        ("0.5.20", {"A": "2"}, 60.0, "other values of A"),
        ("0.5.19", {"A": "1"}, 60.0, "imported SGLang 0.5.19"),
        ("", {"A": "1"}, 0.0, "not imported everything within 0 s"),
    ],
)
async def test_one_that_does_not_fit_is_ended(
    reapers: list[Reaper],
    monkeypatch: pytest.MonkeyPatch,
    sglang: str,
    environment: dict[str, str],
    limit_s: float,
    why: str,
) -> None:
    monkeypatch.setattr(standby, "IMPORTS_S", limit_s)
    actor = EngineActor()
    await _next(actor)
    await actor.keep_spare()
    if sglang:
        await _standby_is_ready(reapers, sglang)
    await actor.end()
    way = (await _next(actor, incarnation=2, environment=environment)).way
    assert why in way
    assert way.startswith("spawned, for its spare is of no use")
    assert reapers[1].spec is None
    await actor.end()


async def test_one_that_has_ended_is_told(reapers: list[Reaper], caplog: pytest.LogCaptureFixture) -> None:
    actor = EngineActor()
    await _next(actor)
    await actor.keep_spare()
    await asyncio.sleep(0.02)
    reapers[1].say(Exit(code=1, tail=("no such library",)))
    reapers[1].writer.close()
    await asyncio.sleep(0.02)
    assert "no such library" in caplog.text
    await actor.end()
    assert "it has ended (exit status 1)" in (await _next(actor, incarnation=2)).way
    await actor.end()


async def test_an_engine_that_no_spare_fits_has_none(reapers: list[Reaper], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(READY, "spares", ())
    monkeypatch.setitem(READY, "unfit", "SGLang starts it through numactl")
    actor = EngineActor()
    await _next(actor)
    await actor.keep_spare()
    assert len(reapers) == 1
    await actor.end()
    assert "numactl" in (await _next(actor, incarnation=2)).way
    await actor.end()


async def test_news_that_cannot_be_read_end_the_incarnation_and_its_start_says_why(reapers: list[Reaper]) -> None:
    """A start would else wait for its deadline, and its end for nothing."""
    actor = EngineActor()

    class Confused(Reaper):
        def say(self, news: News) -> None:
            self.writer.write(b'{"event": "ready", "kv_tokens": null}\n' if isinstance(news, Ready) else b"")

    starting = asyncio.create_task(_next(actor))
    await asyncio.sleep(0)
    reapers[0].__class__ = Confused
    with pytest.raises(StartError, match=r"(?s)what it says cannot be read: Expected `int`, got `null`.*kv_tokens"):
        await asyncio.wait_for(starting, 5)
    assert (await asyncio.wait_for(actor.exited(), 5)).why.startswith("what it says")
    await asyncio.wait_for(actor.end(), 5)
