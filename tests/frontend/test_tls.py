"""HTTPS: the same server behind TLS, on both event loops; files that are renewed; clients with certificates."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import shutil
import socket
import ssl
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop
from certificates import Authority, Signed
from scripted import ScriptedBackend, ask, hangs, http_request, read_answer, says, until

from disagg.config.tls import BadFiles, check_time, problems, valid_between
from disagg.errors import StartError
from disagg.frontend.app import Frontend
from disagg.frontend.http1 import Limits
from disagg.frontend.keys import Keys
from disagg.frontend.own_tokenizer import OwnTokenizer
from disagg.frontend.tls import LOOK_S, Tls, TlsSpec
from disagg.tokenizer.codec import Codec

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
pytestmark = pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def signed(authority: Authority) -> Signed:
    return authority.sign("server")


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest) -> Callable[[Awaitable[None]], None]:
    """Runs a scenario on one of the loops."""

    def run(scenario: Any) -> None:
        with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
            runner.run(asyncio.wait_for(scenario, 60))

    return run


class Server:
    def __init__(
        self, backend: ScriptedBackend, codec: Codec, tls: Tls | None, keys: Keys = Keys(), **options: Any
    ) -> None:
        self.frontend = Frontend(backend, OwnTokenizer(codec, lambda: backend.served), keys=keys, **options)
        self._tls = tls

    async def __aenter__(self) -> Server:
        await self.frontend.start("127.0.0.1", 0, tls=self._tls)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.frontend.stop(0.2)

    @property
    def connections(self) -> set[Any]:
        return self.frontend._server.door.connections

    async def connect(self, trust: ssl.SSLContext) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.frontend.port, ssl=trust)

    async def ask(self, trust: ssl.SSLContext, request: bytes) -> Any:
        reader, writer = await self.connect(trust)
        try:
            writer.write(request)
            return await read_answer(reader)
        finally:
            writer.close()


def _tls(signed: Signed, client_ca: Path | None = None) -> Tls:
    return Tls(TlsSpec(str(signed.cert), str(signed.key), str(client_ca or "")))


def _trust(authority: Authority, own: Signed | None = None) -> ssl.SSLContext:
    trust = ssl.create_default_context(cafile=str(authority.cert))
    if own is not None:
        trust.load_cert_chain(own.cert, own.key)
    return trust


def test_it_answers_and_the_connection_is_used_again(
    run: Any, codec: Codec, authority: Authority, signed: Signed
) -> None:
    async def scenario() -> None:
        async with Server(ScriptedBackend(says("Hi")), codec, _tls(signed)) as server:
            trust = _trust(authority)
            trust.set_alpn_protocols(["h2", "http/1.1"])
            reader, writer = await server.connect(trust)
            made = writer.get_extra_info("ssl_object")
            assert made.selected_alpn_protocol() == "http/1.1"
            assert made.version() == "TLSv1.3"
            for _ in range(3):
                writer.write(http_request("GET", "/v1/models"))
                head = await reader.readuntil(b"\r\n\r\n")
                size = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
                assert b"scripted" in await reader.readexactly(size)
            writer.close()
            answer = await server.ask(trust, ask())
            assert json.loads(answer.body)["choices"][0]["message"]["content"] == "Hi"

    run(scenario())


def test_a_connection_keeps_no_more_of_what_came_than_without_tls(
    run: Any, codec: Codec, authority: Authority, signed: Signed
) -> None:
    async def scenario() -> None:
        async with Server(ScriptedBackend(says("Hi")), codec, _tls(signed)) as server:
            _, writer = await server.connect(_trust(authority))
            await until(lambda: bool(server.connections))
            (held,) = server.connections
            assert held.transport.get_read_buffer_limits()[1] == held.transport.get_write_buffer_limits()[1] == 64 << 10
            writer.close()

    run(scenario())


def test_plain_http_gets_no_answer_and_does_no_harm(
    run: Any, codec: Codec, authority: Authority, signed: Signed
) -> None:
    async def scenario() -> None:
        async with Server(ScriptedBackend(says("Hi")), codec, _tls(signed)) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.frontend.port)
            writer.write(http_request("GET", "/health"))
            said = b""
            with contextlib.suppress(ConnectionError):
                said = await reader.read()
            assert b"HTTP" not in said
            writer.close()
            assert (await server.ask(_trust(authority), http_request("GET", "/health"))).status == 200

    run(scenario())


def test_old_versions_of_tls_are_refused(run: Any, codec: Codec, authority: Authority, signed: Signed) -> None:
    async def scenario() -> None:
        async with Server(ScriptedBackend(says("Hi")), codec, _tls(signed)) as server:
            old = _trust(authority)
            old.set_ciphers("ALL:@SECLEVEL=0")
            with pytest.warns(DeprecationWarning, match="TLSv1_1"):
                old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await server.connect(old)

    run(scenario())


class Records:
    """A client that sees each TLS record. Application data that the server has sent, one number a record."""

    def __init__(self, trust: ssl.SSLContext) -> None:
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = trust.wrap_bio(self._in, self._out, server_hostname="127.0.0.1")
        self.segments: list[bytes] = []  # as the socket gave them

    async def open(self, port: int) -> None:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", port)
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self._writer.write(self._out.read())
                self._in.write(await self._reader.read(1 << 16))
        self._writer.write(self._out.read())

    def send(self, data: bytes) -> None:
        self._tls.write(data)
        self._writer.write(self._out.read())

    async def read(self) -> list[bytes]:
        """The plain text of what comes in one segment, by record."""
        self._in.write(await self._reader.read(1 << 16))
        plain: list[bytes] = []
        while True:
            try:
                plain.append(self._tls.read(1 << 16))
            except ssl.SSLWantReadError:
                return plain

    def close(self) -> None:
        self._writer.close()


def test_a_step_of_a_stream_is_one_record_and_comes_at_once(
    run: Any, codec: Codec, authority: Authority, signed: Signed
) -> None:
    async def scenario() -> None:
        words = [f"word{number} " for number in range(12)]
        async with Server(ScriptedBackend(says(*words, gap_s=0.05)), codec, _tls(signed)) as server:
            client = Records(_trust(authority))
            await client.open(server.frontend.port)
            client.send(ask(stream=True))
            pieces: list[bytes] = []
            while not any(b"[DONE]" in piece for piece in pieces):
                came = await asyncio.wait_for(client.read(), 10)
                assert len(came) <= 1, came  # a read of the socket, one record: a write of the server
                pieces += came
            client.close()
            with_words = [piece for piece in pieces if b"word" in piece]
            assert [piece.count(b"word") for piece in with_words] == [1] * len(words)

    run(scenario())


def test_a_large_answer_comes_whole_though_the_connection_closes_behind_it(
    run: Any, codec: Codec, authority: Authority, signed: Signed
) -> None:
    async def scenario() -> None:
        text = "x" * (4 << 20)
        async with Server(ScriptedBackend(says(text)), codec, _tls(signed)) as server:
            reader, writer = await server.connect(_trust(authority))
            writer.write(ask().replace(b"\r\n", b"\r\nconnection: close\r\n", 1))
            await asyncio.sleep(0.5)  # it does not read at once
            body = (await reader.read()).partition(b"\r\n\r\n")[2]
            assert json.loads(body)["choices"][0]["message"]["content"] == text
            writer.close()

    run(scenario())


@pytest.mark.parametrize("is_tls", [True, False], ids=["https", "http"])
@pytest.mark.parametrize("size", [4 << 20, 16 << 20])
def test_the_last_answer_of_a_connection_waits_for_a_client_that_is_slow(
    run: Any, codec: Codec, authority: Authority, signed: Signed, size: int, is_tls: bool
) -> None:
    limits = Limits(linger_s=0.3, tick_s=0.1)

    async def scenario() -> None:
        tls = _tls(signed) if is_tls else None
        async with Server(ScriptedBackend(says("x" * size)), codec, tls, limits=limits) as server:
            client = socket.socket()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 << 10)
            client.setblocking(False)
            await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", server.frontend.port))
            trust: dict[str, Any] = {"ssl": _trust(authority), "server_hostname": "127.0.0.1"} if is_tls else {}
            reader, writer = await asyncio.open_connection(sock=client, **trust)
            writer.write(ask().replace(b"\r\n", b"\r\nconnection: close\r\n", 1))
            await asyncio.sleep(1.5)  # it does not read at once
            (held,) = server.connections
            assert held.unsent_bytes > size - (6 << 20)  # the limits on what clients do not take see it
            body = (await asyncio.wait_for(reader.read(), 30)).partition(b"\r\n\r\n")[2]
            assert len(json.loads(body)["choices"][0]["message"]["content"]) == size
            writer.close()

    run(scenario())


def test_a_client_that_does_not_read_holds_its_stream_up_and_not_more_than_a_bit_of_it(
    run: Any, codec: Codec, authority: Authority, signed: Signed
) -> None:
    async def scenario() -> None:
        backend = ScriptedBackend(says(*["x" * 50_000 for _ in range(400)]))
        async with Server(backend, codec, _tls(signed)) as server:
            reader, writer = await server.connect(_trust(authority))
            writer.transport.pause_reading()
            writer.write(ask(stream=True))
            await until(lambda: bool(backend.requests))
            await asyncio.sleep(1.0)
            assert backend.closed == []  # 20 MB do not fit into what is between
            writer.transport.resume_reading()
            said = b""
            while b"[DONE]" not in said[-100:]:
                said += await reader.read(1 << 20)
            assert said.count(b"x") >= 400 * 50_000
            writer.close()

    run(scenario())


def test_a_client_that_leaves_cancels_its_request(run: Any, codec: Codec, authority: Authority, signed: Signed) -> None:
    async def scenario() -> None:
        backend = ScriptedBackend(hangs("Hi"))
        async with Server(backend, codec, _tls(signed)) as server:
            for leave in ("close", "abort"):
                reader, writer = await server.connect(_trust(authority))
                writer.write(ask(stream=True))
                await reader.readuntil(b"Hi")
                getattr(writer.transport, leave)()
                await until(lambda: bool(backend.closed))
                assert backend.closed == ["cancelled"]
                backend.closed.clear()

    run(scenario())


def _renew(signed: Signed, by: Signed) -> None:
    """As a renewal does it: beside, then over."""
    for old, new in ((signed.cert, by.cert), (signed.key, by.key)):
        beside = old.with_suffix(".new")
        shutil.copy(new, beside)
        os.replace(beside, old)


async def _serial(server: Server, trust: ssl.SSLContext) -> str:
    _, writer = await server.connect(trust)
    serial = writer.get_extra_info("peercert")["serialNumber"]
    writer.close()
    return str(serial)


def test_renewed_files_are_taken_up_and_broken_ones_are_not(
    run: Any, codec: Codec, authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    signed = Signed(tmp_path / "c.pem", tmp_path / "c.key")
    first, second = authority.sign("first"), authority.sign("second")
    _renew(signed, first)
    tls, now_s = _tls(signed), 1000.0

    async def scenario() -> None:
        nonlocal now_s
        async with Server(ScriptedBackend(says("Hi")), codec, tls) as server:
            trust = _trust(authority)
            before = await _serial(server, trust)
            shutil.copy(second.cert, signed.cert)  # the renewal is half done
            now_s += LOOK_S
            tls.look(now_s)
            assert await _serial(server, trust) == before
            assert "is not the key of" in caplog.text
            open_reader, open_writer = await server.connect(trust)
            shutil.copy(second.key, signed.key)
            tls.look(now_s + LOOK_S / 2)  # it is not looked at all the time
            assert await _serial(server, trust) == before
            tls.look(now_s + LOOK_S)
            assert await _serial(server, trust) != before
            open_writer.write(http_request("GET", "/health"))  # one that was open goes on
            assert (await read_answer(open_reader)).status == 200
            open_writer.close()
            signed.key.unlink()
            tls.look(now_s + 3 * LOOK_S)
            assert await _serial(server, trust) != before
            assert "cannot be read" in caplog.text

    run(scenario())


class _Vanishing:
    """Files that are gone, or closed to us, between one look at them and the next."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.method = ""
        for method in ("load_cert_chain", "load_verify_locations"):
            monkeypatch.setattr(ssl.SSLContext, method, self._loading(method, getattr(ssl.SSLContext, method)))

    def _loading(self, method: str, load: Callable[..., None]) -> Callable[..., None]:
        def loading(context: ssl.SSLContext, *words: Any, **named: Any) -> None:
            if self.method == method:
                raise PermissionError(errno.EACCES, "Permission denied")
            load(context, *words, **named)

        return loading


@pytest.mark.parametrize("method", ["load_cert_chain", "load_verify_locations"])
def test_files_that_vanish_while_they_are_read_change_nothing_and_are_taken_up_once_they_may_be_read(
    authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    signed, vanishing = Signed(tmp_path / "c.pem", tmp_path / "c.key"), _Vanishing(monkeypatch)
    _renew(signed, authority.sign("first"))
    tls, now_s = _tls(signed, authority.cert), 1000.0
    _renew(signed, authority.sign("second"))
    vanishing.method, before = method, tls._newest
    tls.look(now_s)
    assert tls._newest is before
    assert "cannot be read: Permission denied" in caplog.text
    vanishing.method = ""
    tls.look(now_s + LOOK_S)  # nothing has changed
    assert tls._newest is before
    signed.key.chmod(0o640)
    tls.look(now_s + 2 * LOOK_S)
    assert tls._newest is not before


def test_a_certificate_that_has_vanished_is_not_judged_by_its_time(tmp_path: Path) -> None:
    check_time(str(tmp_path / "absent.pem"))


def test_clients_need_a_certificate_where_an_authority_for_them_is_named(
    run: Any, codec: Codec, authority: Authority, signed: Signed, tmp_path: Path
) -> None:
    others, file = Authority(tmp_path, "others"), tmp_path / "client-ca.pem"
    ours, theirs = authority.sign("client"), others.sign("their-client")
    shutil.copy(authority.cert, file)
    tls = _tls(signed, file)
    health = http_request("GET", "/health")

    async def is_let_in(server: Server, own: Signed | None) -> bool:
        try:
            return bool((await server.ask(_trust(authority, own), health)).status == 200)
        except (ssl.SSLError, OSError, EOFError, AssertionError, IndexError, ValueError):
            return False

    async def scenario() -> None:
        shutil.copy(authority.cert, file)
        os.utime(file)
        async with Server(ScriptedBackend(says("Hi")), codec, tls) as server:
            tls.look(time.monotonic())
            assert [await is_let_in(server, own) for own in (ours, theirs, None)] == [True, False, False]
            shutil.copy(others.cert, file)
            tls.look(time.monotonic() + LOOK_S)
            assert [await is_let_in(server, own) for own in (ours, theirs, None)] == [False, True, False]

    run(scenario())


def test_an_action_of_the_pages_own_origin_is_https(
    run: Any, codec: Codec, authority: Authority, signed: Signed
) -> None:
    async def scenario() -> None:
        key, backend = "an-admin-key-0123456789", ScriptedBackend(says("Hi"))
        async with Server(backend, codec, _tls(signed), Keys([], [key])) as server:
            for scheme, status in (("https", 200), ("http", 403)):
                origin = f"origin: {scheme}://t"
                request = http_request(
                    "POST", "/disagg/engines/prefill-0/drain", b"", [f"authorization: Bearer {key}", origin]
                )
                request = request.replace(b"\r\nhost: ", b"\r\nx-host: ").replace(
                    b"\r\n\r\n", b"\r\nhost: t\r\n\r\n", 1
                )
                assert (await server.ask(_trust(authority), request)).status == status

    run(scenario())


def _problem(signed: Signed, client_ca: Path | None = None) -> str:
    return "".join(map(str, problems(str(signed.cert), str(signed.key), str(client_ca or ""))))


def test_files_that_cannot_be_used_are_told_apart(authority: Authority, signed: Signed, tmp_path: Path) -> None:
    other, text, encrypted = authority.sign("other"), tmp_path / "text.pem", tmp_path / "encrypted.key"
    text.write_text("no certificate\n")
    words = ["openssl", "pkey", "-in", str(signed.key), "-aes256", "-passout", "pass:x", "-out", str(encrypted)]
    assert os.system(" ".join(words)) == 0
    assert _problem(signed) == ""
    absent = Signed(tmp_path / "absent.pem", signed.key)
    assert _problem(absent).startswith("frontend.tls.cert: ")
    assert "No such file" in _problem(absent)
    assert "is not the key of" in _problem(Signed(signed.cert, other.key))
    assert "is no PEM file" in _problem(Signed(text, signed.key))
    assert "has a password" in _problem(Signed(signed.cert, encrypted))
    assert _problem(signed, text).startswith("frontend.tls.client_ca: ")
    with pytest.raises(StartError, match="is not the key of"):
        _tls(Signed(signed.cert, other.key))


def test_a_certificate_whose_time_is_over_is_told(authority: Authority, caplog: pytest.LogCaptureFixture) -> None:
    begins_s, ends_s = valid_between(authority.sign("of-two-days").cert.read_text())
    assert ends_s - begins_s == 2 * 86400
    assert abs(begins_s - time.time()) < 600
    cert = str(authority.sign("of-a-day", days=1).cert)
    with pytest.raises(BadFiles, match="has expired"):
        check_time(cert, time.time() + 2 * 86400)
    with pytest.raises(BadFiles, match="is not valid before"):
        check_time(cert, time.time() - 86400)
