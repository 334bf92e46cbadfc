"""A frontend's questions to the controller: answered in any order, and no question waits for ever."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from disagg.errors import DeadlineExceeded
from disagg.registry import control
from disagg.registry.control import ControlClient, ControlServer
from disagg.registry.orders import Answer, Asked, Revision, Scale, Status
from disagg.roles import Role

SECRET = b"s" * 32
HOST = "127.0.0.1"


def client_of(port: int, secret: bytes = SECRET) -> ControlClient:
    return ControlClient(lambda: f"{HOST}:{port}", secret)


class Controller:
    def __init__(self) -> None:
        self.hold: dict[str, asyncio.Event] = {}
        self.lost: list[tuple[str, str]] = []
        told = self._read_log, self._drain, lambda *pair: self.lost.append(pair)
        self.server = ControlServer(SECRET, *told, self, self)

    async def client(self, secret: bytes = SECRET) -> ControlClient:
        return client_of(await self.server.start(HOST), secret)

    async def _read_log(self, engine_id: str, lines: int) -> str | None:
        if engine_id in self.hold:
            await self.hold[engine_id].wait()
        return None if engine_id == "nobody-0" else f"{lines} lines of {engine_id}"

    async def load(self, name: str, path: str, pinned: bool) -> str | None:
        return None if pinned else f"{name} of {path} is not pinned"

    async def unload(self, name: str) -> str | None:
        return f"there is no {name}"

    async def ask(self, asked: Asked) -> Answer:
        return Answer(lines=(str(asked.order),), question="sure?" if asked.yes else "")

    def status(self, show: int) -> Status:
        return Status(None, (Revision(show, 1.0, "started"),))

    async def _drain(self, engine_id: str, restart: bool) -> str | None:
        return None if restart else f"{engine_id} stays"


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "ANSWER_S", 0.2)


async def test_questions_are_answered_as_they_are_ready() -> None:
    controller = Controller()
    client = await controller.client()
    controller.hold["decode-0"] = asyncio.Event()
    slow = asyncio.create_task(client.log_lines("decode-0", 5))
    assert await client.log_lines("decode-1", 7) == "7 lines of decode-1"
    assert await client.log_lines("nobody-0", 7) is None
    assert await client.drain("decode-1", True) is None
    assert await client.drain("decode-1", False) == "decode-1 stays"
    await client.transfer_lost("prefill-0#1", "decode-0#1")
    assert await client.load_adapter("sql", "/a", True) is None
    assert await client.load_adapter("sql", "/a", False) == "sql of /a is not pinned"
    assert await client.unload_adapter("sql") == "there is no sql"
    scale = Asked(Scale({Role.DECODE: 3}), yes=True)
    assert await client.change(scale) == Answer(lines=("scale decode=3",), question="sure?")
    assert (await client.changes(7)).revisions == (Revision(7, 1.0, "started"),)
    assert controller.lost == [("prefill-0#1", "decode-0#1")]
    assert not slow.done()
    controller.hold["decode-0"].set()
    assert await slow == "5 lines of decode-0"
    await controller.server.close()


async def test_a_controller_that_takes_no_orders_says_so() -> None:
    server = ControlServer(SECRET, *[None] * 3)  # type: ignore[arg-type, list-item]
    client = client_of(await server.start(HOST))
    assert (await client.change(Asked(Scale({})))).why_not == "there is no controller"
    assert await client.changes(0) == Status()
    await server.close()


@pytest.mark.usefixtures("short")
async def test_a_controller_that_does_not_answer_is_given_up() -> None:
    controller = Controller()
    client = await controller.client()
    controller.hold["decode-0"] = asyncio.Event()
    with pytest.raises(DeadlineExceeded, match="did not answer"):
        await client.log_lines("decode-0", 5)
    await controller.server.close()


async def test_a_controller_that_ends_is_told_at_once_to_those_who_wait_and_the_next_question_asks_anew() -> None:
    controller = Controller()
    client = await controller.client()
    controller.hold["decode-0"] = asyncio.Event()
    waiting = asyncio.create_task(client.log_lines("decode-0", 5))
    await asyncio.sleep(0.05)
    await controller.server.close()
    with pytest.raises(DeadlineExceeded, match="cannot be asked"):
        await asyncio.wait_for(waiting, 5)
    with pytest.raises(DeadlineExceeded, match="cannot be asked"):  # nobody listens
        await client.drain("decode-0", True)
    host, port = client._address().split(":")
    again = ControlServer(SECRET, controller._read_log, controller._drain, lambda *_: None)
    listener = await asyncio.get_running_loop().create_server(again._accept, host, int(port))
    assert await client.drain("decode-0", True) is None
    listener.close()
    await again.close()


async def test_without_the_secret_nothing_is_answered() -> None:
    controller = Controller()
    client = await controller.client(b"t" * 32)
    with pytest.raises(DeadlineExceeded, match="cannot be asked"):
        await client.drain("decode-0", True)
    await controller.server.close()
    await asyncio.sleep(0.02)


@pytest.mark.usefixtures("short")
async def test_a_question_that_was_given_up_while_connecting_leaves_no_connection() -> None:
    accepted: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
    silent = await asyncio.start_server(lambda *streams: accepted.append(streams), HOST, 0)
    client = client_of(silent.sockets[0].getsockname()[1])
    with pytest.raises(DeadlineExceeded, match="did not answer"):
        await client.log_lines("decode-0", 5)
    for reader, writer in accepted:
        async with asyncio.timeout(5):
            with contextlib.suppress(ConnectionError):
                assert len(await reader.read()) == 0
        writer.transport.abort()
    silent.close()
    await asyncio.sleep(0.02)
