"""`disagg scale`, `apply`, `restart`, `role`, `rollback`, `revisions` and `stop` through a real frontend, with keys."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import click
import msgspec
import pytest
import yaml
from scripted import ScriptedBackend, exchange, says, serving
from typer.testing import CliRunner, Result

from disagg.cli import ordering
from disagg.cli.app import app
from disagg.cli.change import FOR_READING
from disagg.errors import DeadlineExceeded, StartError
from disagg.frontend import peer_user
from disagg.frontend.keys import Keys
from disagg.registry import orders
from disagg.registry.orders import Asked, Progress, Revision, Stage, Status
from disagg.roles import Role
from disagg.tokenizer.codec import Codec

KEY, ADMIN = "first-key-0123456789", "admin-key-0123456789"
Run = Callable[..., Awaitable[Result]]
SCALE = orders.Scale({Role.PREFILL: 3, Role.DECODE: 2})


class Backend(ScriptedBackend):
    """Of a change that goes on for two looks."""

    why = ""
    looks = 0

    def __init__(self) -> None:
        super().__init__(says("Hi"))

    async def change(self, asked: Asked) -> orders.Answer:
        answer = await super().change(asked)
        return msgspec.structs.replace(answer, change=0) if asked.dry_run else answer

    async def changes(self, show: int) -> Status:
        self.looks += 1
        lines = tuple(f"line {n}" for n in range(self.looks))
        stage = Stage.RUNNING if self.looks < 3 else Stage.ROLLED_BACK if self.why else Stage.DONE
        config = "version: 1\n" if show == 1 else ""
        return Status(
            Progress(1, "scale", stage, 0.0, lines, self.why),
            (Revision(2, 0.0, "several"), Revision(1, 0.0, "started", config)),
        )


@pytest.fixture
def disagg(monkeypatch: pytest.MonkeyPatch) -> Run:
    async def run(port: int, *words: str, key: str = ADMIN) -> Result:
        monkeypatch.setattr(ordering, "POLL_S", 0.01)
        monkeypatch.setenv("DISAGG_URL", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("DISAGG_API_KEY", key)
        return await asyncio.to_thread(CliRunner().invoke, app, list(words))

    return run


def post(body: bytes, key: str = ADMIN) -> bytes:
    head = f"POST /disagg/changes HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {key}\r\n"
    return f"{head}content-length: {len(body)}\r\nconnection: close\r\n\r\n".encode() + body


async def test_each_command_says_its_order(codec: Codec, disagg: Run) -> None:
    said: dict[tuple[str, ...], orders.Order] = {
        ("scale", "prefill=3", "decode=2"): SCALE,
        ("scale", "chat.prefill=3"): orders.Scale({"chat.prefill": 3}),
        ("restart", "--rolling", "decode", "prefill-0"): orders.Restart(("decode", "prefill-0")),
        ("restart", "--rolling"): orders.Restart(),
        ("role", "prefill-1", "decode"): orders.ChangeRole("prefill-1", Role.DECODE),
        ("rollback", "--to", "2"): orders.Rollback(2),
        ("rollback",): orders.Rollback(),
    }
    backend = Backend()
    async with serving(backend, codec, keys=Keys([KEY], [ADMIN])) as frontend:
        for words, order in said.items():
            backend.ordered.clear()
            backend.answer = orders.Answer(lines=("decode-2 is added",))
            result = await disagg(frontend.port, *words)
            assert result.exit_code == 0, result.exception
            assert backend.ordered == [Asked(order, dry_run=True), Asked(order)]
            assert result.output == "decode-2 is added\nthere is nothing to do\n"


async def test_a_client_s_key_orders_nothing(codec: Codec, disagg: Run) -> None:
    backend = Backend()
    async with serving(backend, codec, keys=Keys([KEY], [ADMIN])) as frontend:
        for words in (("scale", "decode=2"), ("revisions",), ("stop", "--yes")):
            result = await disagg(frontend.port, *words, key=KEY)
            assert "this needs a key of security.admin_keys" in str(result.exception)
        assert (backend.ordered, backend.looks) == ([], 0)


async def test_what_is_asked_is_not_done_without_a_yes(codec: Codec, disagg: Run) -> None:
    backend = Backend()
    backend.answer = orders.Answer(question="no decode engine is left then")
    async with serving(backend, codec, keys=Keys([KEY], [ADMIN])) as frontend:
        result = await disagg(frontend.port, "scale", "decode=0")
        assert isinstance(result.exception, ordering.NotSaidYes)
        assert "say --yes to do it all the same" in str(result.exception)
        assert [each.dry_run for each in backend.ordered] == [True]
        await disagg(frontend.port, "scale", "decode=0", "--yes")
        assert backend.ordered[-1] == Asked(orders.Scale({Role.DECODE: 0}), yes=True)
        answer = await exchange(frontend.port, post(msgspec.json.encode(Asked(SCALE))))
        assert (answer.status, answer.json["error"]["code"]) == (409, "order_asks")


async def test_what_somebody_agreed_to_is_sent_with_the_order(
    codec: Codec, disagg: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ordering, "say_yes", lambda *_: None)
    backend = Backend()
    backend.answer = orders.Answer(question="no decode engine is left then")
    async with serving(backend, codec, keys=Keys([KEY], [ADMIN])) as frontend:
        result = await disagg(frontend.port, "scale", "decode=0")
        assert backend.ordered[-1] == Asked(orders.Scale({Role.DECODE: 0}), agreed="no decode engine is left then")
        assert "409: no decode engine is left then; say yes" in str(result.exception), "the controller has not agreed"


async def test_what_is_done_is_told_where_it_is_not_what_was_told(codec: Codec, disagg: Run) -> None:
    class Another(Backend):
        async def change(self, asked: Asked) -> orders.Answer:
            lines = ("decode-2 stands in",) if asked.dry_run else ("they go before they come",)
            return msgspec.structs.replace(await super().change(asked), lines=lines)

    async with serving(Another(), codec, keys=Keys([KEY], [ADMIN])) as frontend:
        said = (await disagg(frontend.port, "restart", "--rolling")).output
        assert said.startswith("decode-2 stands in\nthey go before they come\nrestart --rolling is under way")


async def test_what_is_refused_is_told(codec: Codec, disagg: Run) -> None:
    backend = Backend()
    backend.answer = orders.Answer(why_not="the cluster has no room")
    async with serving(backend, codec, keys=Keys([KEY], [ADMIN])) as frontend:
        result = await disagg(frontend.port, "scale", "decode=9")
        assert isinstance(result.exception, StartError)
        assert "409: the cluster has no room" in str(result.exception)


async def test_who_waits_is_told_each_line_once_and_how_it_ended(codec: Codec, disagg: Run) -> None:
    backend = Backend()
    async with serving(backend, codec, keys=Keys([KEY], [ADMIN])) as frontend:
        result = await disagg(frontend.port, "scale", "decode=3", "--wait")
        assert (result.exit_code, result.output) == (0, "line 0\nline 1\nline 2\n")
        backend.looks, backend.why = 0, "decode-2 did not start"
        result = await disagg(frontend.port, "revisions", "--wait")
        assert "rolled back: decode-2 did not start" in str(result.exception)


async def test_who_waits_is_told_how_its_own_change_ended_also_where_another_has_followed(
    codec: Codec, disagg: Run
) -> None:
    class Followed(Backend):
        kept: tuple[Progress, ...] = (
            Progress(1, "scale decode=3", Stage.ROLLED_BACK, 0.0, ("decode-2 starts",), "it did not start"),
        )

        async def changes(self, show: int) -> Status:
            return Status(Progress(2, "restart --rolling", Stage.RUNNING, 0.0), earlier=self.kept)

    backend = Followed()
    async with serving(backend, codec, keys=Keys([KEY], [ADMIN])) as frontend:
        result = await disagg(frontend.port, "scale", "decode=3", "--wait")
        assert result.output == "decode-2 starts\n"
        assert "rolled back: it did not start" in str(result.exception)
        backend.kept = ()
        result = await disagg(frontend.port, "scale", "decode=3", "--wait")
        assert "how it ended is known no longer: others have followed" in str(result.exception)


async def test_who_waits_goes_on_where_lines_are_kept_no_longer(codec: Codec, disagg: Run) -> None:
    class Long(Backend):
        async def changes(self, show: int) -> Status:
            self.looks += 1
            lines, dropped = (("1", "2"), 0) if self.looks == 1 else (("5", "6"), 4)
            stage = Stage.RUNNING if self.looks < 3 else Stage.DONE
            return Status(Progress(1, "scale", stage, 0.0, lines, dropped=dropped))

    async with serving(Long(), codec, keys=Keys([KEY], [ADMIN])) as frontend:
        result = await disagg(frontend.port, "scale", "decode=3", "--wait")
        assert (result.exit_code, result.output) == (0, "1\n2\n(2 lines are kept no longer)\n5\n6\n")


async def test_who_waits_is_patient_with_a_controller_that_is_busy(codec: Codec, disagg: Run) -> None:
    class Busy(Backend):
        async def changes(self, show: int) -> Status:
            if self.looks == 1:
                self.looks += 1
                raise DeadlineExceeded("controller", "the controller did not answer within 10 s")
            return await super().changes(show)

    async with serving(Busy(), codec, keys=Keys([KEY], [ADMIN])) as frontend:
        result = await disagg(frontend.port, "scale", "decode=3", "--wait")
        assert (result.exit_code, result.output) == (0, "line 0\nline 1\nline 2\n"), result.exception


async def test_a_configuration_is_sent_whole_and_without_its_secrets(
    codec: Codec, disagg: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The variable with the key need not be set where the command runs."""
    file = tmp_path / "changed.yaml"
    text = (
        "extends: simulated\nsecurity: {api_keys: ['${env:NOT_HERE}'], open_metrics: true}\nnamespace: '${env:HERE}'\n"
    )
    file.write_text(text)
    monkeypatch.setenv("HERE", "here")
    backend = Backend()
    async with serving(backend, codec, keys=Keys([KEY], [ADMIN])) as frontend:
        result = await disagg(frontend.port, "apply", str(file), "--set", "decode.replicas=5", "--dry-run")
        assert result.exit_code == 0, result.exception
        assert "keys and passwords are not sent" in result.output
        (asked,) = backend.ordered
        assert isinstance(asked.order, orders.Apply)
        sent = yaml.safe_load(asked.order.config)
        assert (sent["namespace"], sent["decode"]["replicas"], sent["prefill"]["replicas"]) == ("here", 5, 2)
        assert sent["security"] == {"open_metrics": True}
        assert not {"extends", "name"} & sent.keys()


async def test_a_configuration_that_is_wrong_is_not_sent(codec: Codec, disagg: Run, tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_text("extends: simulated\nfrontend: {port: x}\n")
    backend = Backend()
    async with serving(backend, codec, keys=Keys([KEY], [ADMIN])) as frontend:
        result = await disagg(frontend.port, "apply", str(tmp_path / "wrong.yaml"))
        assert "frontend.port" in str(result.exception)
        assert backend.ordered == []


async def test_revisions_are_shown(codec: Codec, disagg: Run) -> None:
    async with serving(Backend(), codec, keys=Keys([KEY], [ADMIN])) as frontend:
        assert "started  <- now" in (await disagg(frontend.port, "revisions")).output
        assert (await disagg(frontend.port, "revisions", "--show", "1")).output == f"{FOR_READING} 1\nversion: 1\n"
        assert FOR_READING.startswith("# ")
        assert json.loads((await disagg(frontend.port, "revisions", "--json")).output)["revisions"][1]["number"] == 1
        assert "no revision 9" in str((await disagg(frontend.port, "revisions", "--show", "9")).exception)


async def test_stop_waits_until_nobody_answers(codec: Codec, disagg: Run) -> None:
    backend = Backend()
    async with serving(backend, codec, keys=Keys([KEY], [ADMIN])) as frontend:
        stopping = asyncio.ensure_future(disagg(frontend.port, "stop", "--yes", "--wait"))
        while backend.looks < 3:
            await asyncio.sleep(0.01)
        assert backend.ordered[-1] == Asked(orders.Stop(), yes=True)
    assert (await stopping).output == "the deployment stops\nno frontend answers any more\n"


async def test_who_answers_anything_is_not_gone_and_is_not_waited_for_for_ever(
    codec: Codec, disagg: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Alone(Backend):
        """Its controller has ended."""

        async def changes(self, show: int) -> Status:
            self.looks += 1
            raise DeadlineExceeded("controller", "the controller cannot be asked")

    monkeypatch.setattr(ordering, "GONE_S", 0.2)
    backend = Alone()
    async with serving(backend, codec, keys=Keys([KEY], [ADMIN])) as frontend:
        result = await disagg(frontend.port, "stop", "--yes", "--wait")
        assert "a frontend still answers after 0.2 s: 504: the controller cannot be asked" in str(result.exception)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'{"order": {"do": "dance"}}', b'{"order": {"do": "stop", "now": 1}}', b'{"order": "\xff"}'],
)
async def test_what_is_no_order_is_the_askers_mistake(codec: Codec, body: bytes) -> None:
    backend = Backend()
    async with serving(backend, codec, keys=Keys([KEY], [ADMIN])) as frontend:
        answer = await exchange(frontend.port, post(body))
        assert (answer.status, answer.json["error"]["code"]) == (400, "invalid_order")
        assert backend.ordered == []


@pytest.mark.parametrize(
    "words",
    [
        ("scale", "prefill"),
        ("scale", "judge=1"),
        ("scale", "decode=-1"),
        ("scale", "decode=1", "decode=2"),
        ("restart",),
    ],
)
async def test_words_that_are_no_order_are_refused_here(disagg: Run, words: tuple[str, ...]) -> None:
    assert isinstance((await disagg(1, *words)).exception, click.UsageError)


def _posts(port: int, user: int | None, own: tuple[str, int] | None = None) -> socket.socket:
    """A connection of that user's, on which an order goes out; `own`: its end."""
    if user is not None:
        os.seteuid(user)
    try:
        connection = socket.create_connection(("127.0.0.1", port), source_address=own)
    finally:
        if user is not None:
            os.seteuid(0)
    body = msgspec.json.encode(Asked(orders.Apply("version: 1"), dry_run=True))
    head = (
        f"POST /disagg/changes HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    connection.sendall(head.encode() + body)
    return connection


async def _answered(connection: socket.socket) -> str:
    with connection:
        return (await asyncio.to_thread(connection.makefile("rb").read)).decode()


async def test_another_user_of_this_machine_applies_nothing(codec: Codec) -> None:
    """Without admin keys who is here operates it; but a configuration says what engines run."""
    backend = Backend()
    async with serving(backend, codec) as frontend:
        assert " 200 " in await _answered(_posts(frontend.port, None))
        if os.getuid() == 0:
            said = await _answered(_posts(frontend.port, 65534))
            assert " 403 " in said, said
            assert "only the user may apply one whose deployment it is; set security.admin_keys" in said
        assert len(backend.ordered) == 1


async def test_nor_does_one_who_takes_the_number_of_a_port_of_ours(codec: Codec) -> None:
    """From another address of loopback, and with his end shut down."""
    if os.getuid() != 0:
        pytest.skip("only root can be two users")
    backend = Backend()
    async with serving(backend, codec) as frontend:
        with socket.create_connection(("127.0.0.1", frontend.port)) as ours:
            for shuts in (False, True):
                connection = _posts(frontend.port, 65534, ("127.0.0.2", ours.getsockname()[1]))
                if shuts:
                    connection.shutdown(socket.SHUT_WR)
                assert " 403 " in await _answered(connection)
    assert not backend.ordered


V4 = ("0100007F:{:04X}", "0100007F:1F40")
V6 = ("00000000000000000000000001000000:{:04X}", "00000000000000000000000001000000:1F40")
MAPPED = ("0000000000000000FFFF00000100007F:{:04X}", "0000000000000000FFFF00000100007F:1F40")
OTHER = ("0200007F:{:04X}", "0100007F:1F40")
ELSEWHERE = ("0100007F:{:04X}", "0100007F:1F41")


@pytest.mark.parametrize(
    ("rows", "is_own"),
    [
        ([(V4, 40000, "01", 1000)], True),
        ([(V4, 40000, "01", 0)], True),
        ([(MAPPED, 40000, "01", 1000)], True),
        ([(V4, 40000, "01", 1001)], False),
        ([(V4, 40000, "01", 1001), (OTHER, 40000, "01", 1000), (ELSEWHERE, 40000, "01", 1000)], False),
        ([(V4, 40000, "05", 1001), (OTHER, 40000, "01", 1000)], False),
        ([(V6, 40000, "01", 1000)], False),
        ([(V4, 40000, "06", 1000)], False),
        ([(V4, 40001, "01", 1000)], False),
        ([], False),
    ],
    ids=str,
)
def test_whose_a_connection_is_as_the_kernel_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, rows: list[tuple[tuple[str, str], int, str, int]], is_own: bool
) -> None:
    row = "   0: {} {} {} 00000000:00000000 00:00000000 00000000 {:5} 0 1 1 0\n"
    table = tmp_path / "tcp"
    monkeypatch.setattr(peer_user, "TABLES", (str(table), str(tmp_path / "not-there")))
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    said = "".join(row.format(ends[0].format(port), ends[1], state, uid) for ends, port, state, uid in rows)
    table.write_text("  sl  local_address rem_address\n" + said)
    assert peer_user.is_own_users(("127.0.0.1", 40000), ("127.0.0.1", 8000)) is is_own
    assert peer_user.is_own_users(("::ffff:127.0.0.1", 40000), ("::ffff:127.0.0.1", 8000)) is is_own
    table.unlink()
    assert not peer_user.is_own_users(("127.0.0.1", 40000), ("127.0.0.1", 8000))
