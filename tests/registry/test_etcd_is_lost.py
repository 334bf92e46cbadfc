"""Faults of etcd and of the way to it: what a store has does not change by them, and no watcher misses anything."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any

import pytest
from etcd_here import ETCD, Etcd, answers, etcd, proxy
from msgspec.structs import replace
from test_store_contract import NOTHING, Watcher

from disagg.errors import StartError
from disagg.registry import etcd_store
from disagg.registry.etcd_access import Access
from disagg.registry.etcd_store import EtcdLease, EtcdStore
from disagg.registry.follower import Follower
from disagg.registry.keys import Keys
from disagg.registry.memory import MemoryRegistry
from disagg.registry.publisher import Publisher
from disagg.registry.records import ControllerRecord, EngineRecord, State
from disagg.registry.store import LeaseLost, Store, StoreLost
from disagg.roles import Role

pytestmark = pytest.mark.slow

KEYS = Keys("prod", "chat", "owner/Model-7B")
PAIR = [
    EngineRecord(id=f"{role}-0", role=role, state=State.READY, incarnation=1, plane="10.0.0.1:7")
    for role in (Role.PREFILL, Role.DECODE)
]


@asynccontextmanager
async def stores(*endpoints: tuple[str, ...], access: Access | None = None) -> AsyncIterator[list[EtcdStore]]:
    async with AsyncExitStack() as stack:
        made = []
        for each in endpoints:
            made.append(await answers(EtcdStore(each, access)))
            stack.push_async_callback(made[-1].close)
        yield made


async def _write_until_made(store: Store, changes: dict[str, bytes | None]) -> None:
    """As whoever publishes does it."""
    while True:
        try:
            return await store.write(changes)
        except StoreLost:
            pass


def _etcdctl(member: Etcd, *words: str) -> str:
    command = [str(Path(ETCD).with_name("etcdctl")), "--endpoints", member.endpoint, *words]
    return subprocess.run(command, check=True, capture_output=True, text=True, env={"ETCDCTL_API": "3"}).stdout


async def test_a_member_that_is_killed_and_comes_back_was_never_away(tmp_path: Path) -> None:
    with etcd(tmp_path) as (member,):
        async with stores((member.endpoint,), (member.endpoint,)) as (one, other):
            lease = await one.grant(5)
            await one.write({"p/leased": b""}, lease)
            watcher = Watcher(other, "p/", await other.snapshot("p/"))
            for number in range(2):
                member.kill()
                writing = asyncio.create_task(_write_until_made(one, {f"p/{number}": b""}))
                await asyncio.sleep(0.5)
                assert not writing.done()
                member.start()
                await writing
            await watcher.until({"p/leased": b"", "p/0": b"", "p/1": b""})
            assert not lease.lost.is_set()
            assert not any(None in batch.values() for batch in watcher.batches)
            await watcher.stop()


async def test_what_was_compacted_while_the_network_was_gone_is_not_missed(tmp_path: Path) -> None:
    with etcd(tmp_path) as (member,):
        async with proxy(member.endpoint) as (between, here), stores((member.endpoint,), (here,)) as (one, cut_off):
            await one.write({"p/goes": b"", "p/stays": b"", "p/changes": b"1"})
            watcher = Watcher(cut_off, "p/", NOTHING)
            await watcher.until({"p/goes": b"", "p/stays": b"", "p/changes": b"1"})
            between.cut()
            await one.write({"p/goes": None, "p/changes": b"2", "p/new": b""})
            revision = (await one.snapshot("p/")).revision
            await one.write({"q/later": b""})
            _etcdctl(member, "compaction", str(revision + 1))
            between.mend()
            await watcher.until({"p/stays": b"", "p/changes": b"2", "p/new": b""})
            assert not any("p/stays" in batch for batch in watcher.batches[1:])
            await one.write({"p/new": b"2"})
            await watcher.until({"p/stays": b"", "p/changes": b"2", "p/new": b"2"})
            await watcher.stop()


async def test_a_lease_that_ran_out_behind_a_lost_network_is_known_to_be_lost(tmp_path: Path) -> None:
    with etcd(tmp_path) as (member,):
        async with proxy(member.endpoint) as (between, here), stores((member.endpoint,), (here,)) as (one, cut_off):
            lease = await cut_off.grant(2)
            await cut_off.write({"p/a": b""}, lease)
            watcher = Watcher(one, "p/", NOTHING)
            await watcher.until({"p/a": b""})
            between.cut()
            await watcher.until({}, 4.0)
            assert not lease.lost.is_set(), "silence alone says nothing"
            between.mend()
            async with asyncio.timeout(10):
                await lease.lost.wait()
            with pytest.raises(LeaseLost):
                await cut_off.write({"p/a": b""}, lease)
            await watcher.stop()


async def test_a_watch_that_is_silent_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first member hears everything and says nothing, as one that is stopped or cut off without a word."""
    monkeypatch.setattr(etcd_store, "PROGRESS_S", 0.5)
    with etcd(tmp_path) as (member,):
        async with proxy(member.endpoint) as (between, here), stores((here, member.endpoint)) as (store,):
            while store._members.current.endpoint != here:
                store._members.leave(store._members.current)
            watcher = Watcher(store, "p/", NOTHING)
            await store.write({"p/a": b"1"})
            await watcher.until({"p/a": b"1"})
            assert store._members.current.endpoint == here
            between.cut()
            began_s = time.monotonic()
            await store.write({"p/a": b"2"})  # by the other member
            await watcher.until({"p/a": b"2"}, 8.0)
            assert time.monotonic() - began_s < 6.0
            await watcher.stop()


async def test_an_etcd_that_was_set_back_is_read_anew(tmp_path: Path) -> None:
    """Its data was lost: its revisions begin again, and an old one is never reached by waiting."""
    with etcd(tmp_path) as (member,):
        async with stores((member.endpoint,)) as (store,):
            for number in range(20):
                await store.write({"p/a": b"%d" % number})
            watcher = Watcher(store, "p/", await store.snapshot("p/"))
            await asyncio.sleep(0.3)
            member.kill()
            subprocess.run(["rm", "-r", str(tmp_path / "m0")], check=True)
            member.start()
            await _write_until_made(store, {"p/b": b"new"})
            await watcher.until({"p/b": b"new"})
            await watcher.stop()


async def test_a_follower_of_three_members_stops_and_no_put_fails_and_no_lease_is_lost(tmp_path: Path) -> None:
    with etcd(tmp_path, members=3) as members:
        stopped = next(member for member in members if not _leads(member))
        async with _six(members) as made:
            leases = [await store.grant(5) for store in made]
            watcher = Watcher(made[0], "p/", NOTHING)
            await _write_while_it_is_stopped(stopped, 12, made, leases, watcher)
            await asyncio.sleep(3)
            assert not any(lease.lost.is_set() for lease in leases)
            assert not any(None in batch.values() for batch in watcher.batches)
            await watcher.stop()


async def test_a_leader_that_stops_and_comes_back_and_revokes_leases_takes_nothing_away(tmp_path: Path) -> None:
    """While it is stopped no put fails, and no lease is lost. Back, it may revoke every lease that it believes to have
    run out, before it learns that it leads no more (etcd-io/etcd#12528, made rare in 3.5.12). What the controller has
    published is put anew then, and no follower misses anything meanwhile."""
    with etcd(tmp_path, members=3) as members:
        leader = next(member for member in members if _leads(member))
        async with _six(members) as made:
            leases = [await store.grant(5) for store in made[2:]]
            watcher = Watcher(made[2], "p/", NOTHING)
            async with _published(made[0], made[1]) as (registry, following):
                gone: list[str] = []
                looking = asyncio.create_task(_note_what_goes(following, gone))
                await _write_while_it_is_stopped(leader, 6, made[2:], leases, watcher)
                await asyncio.sleep(3)
                for lease in _etcdctl(members[0], "lease", "list").splitlines()[1:]:
                    with suppress(subprocess.CalledProcessError):  # as the leader, which may be doing it
                        _etcdctl(members[0], "lease", "revoke", lease)
                await registry.put(replace(PAIR[0], lane="rc"))
                async with asyncio.timeout(10):
                    while (following.records, following.met) != (registry.records, registry.met):
                        await asyncio.sleep(0.02)
                    while len((await made[1].snapshot(KEYS.prefix)).entries) < len(PAIR) + 2:
                        await asyncio.sleep(0.02)
                looking.cancel()
                assert not gone
            await watcher.stop()


async def _note_what_goes(following: Follower, gone: list[str]) -> None:
    async for view in following.watch():
        gone += [name for name, record in view.changes.records.items() if record is None]
        gone += [f"{prefill} {decode}" for (prefill, decode), have_met in view.changes.met.items() if not have_met]


@asynccontextmanager
async def _six(members: list[Etcd]) -> AsyncIterator[list[EtcdStore]]:
    everywhere = tuple(member.endpoint for member in members)
    async with stores(*[everywhere] * 6) as made:
        yield made


async def _write_while_it_is_stopped(
    member: Etcd, stopped_s: float, made: list[EtcdStore], leases: list[EtcdLease], watcher: Watcher
) -> None:
    member.signal(signal.SIGSTOP)
    try:
        until_s, written = time.monotonic() + stopped_s, dict[str, bytes]()
        while time.monotonic() < until_s:
            for store, lease in zip(made, leases, strict=True):
                key = f"p/{len(written)}"
                await store.write({key: b""}, lease)
                written[key] = b""
            await asyncio.sleep(0.2)
        assert len(written) > 25
        await watcher.until(written, 12.0)
        assert not any(lease.lost.is_set() for lease in leases)
    finally:
        member.signal(signal.SIGCONT)


@asynccontextmanager
async def _published(store: EtcdStore, of_follower: EtcdStore) -> AsyncIterator[tuple[MemoryRegistry, Follower]]:
    """A table with a pair, and a follower who has it."""
    registry = MemoryRegistry()
    for record in PAIR:
        await registry.put(record)
    await registry.add_met(*(record.life for record in PAIR))
    publisher = Publisher(registry, store, KEYS, ControllerRecord(run="run-1", host="here", pid=7), 5.0, Random(1))
    await publisher.begin()
    running = asyncio.create_task(publisher.run())
    following = Follower(of_follower, KEYS)
    await following.connect()
    try:
        yield registry, following
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await publisher.end()
        await following.close()


def _leads(member: Etcd) -> bool:
    status = _status(member)
    return bool(status["leader"] == status["header"]["member_id"])


def _status(member: Etcd) -> dict[str, Any]:
    return json.loads(_etcdctl(member, "endpoint", "status", "-w", "json"))[0]["Status"]


async def test_after_a_loss_nobody_hurries(tmp_path: Path) -> None:
    """Thirty watchers, each from a client of its own, lose etcd for 6 s: their connections come back spread. (A busy
    machine gathers some of them; a herd is all thirty.)"""
    with etcd(tmp_path) as (member,):
        async with proxy(member.endpoint) as (between, here), stores(*[(here,)] * 30) as made:
            watchers = [Watcher(store, "p/", NOTHING) for store in made]
            await made[0].write({"p/a": b"1"})
            for watcher in watchers:
                await watcher.until({"p/a": b"1"})
            member.kill()
            await asyncio.sleep(6)
            before = len(between.came_s)
            member.start()
            await _write_until_made(made[0], {"p/a": b"2"})
            for watcher in watchers:
                await watcher.until({"p/a": b"2"}, 15.0)
                await watcher.stop()
            came_s = between.came_s[before:]
            most = max(sum(1 for at in came_s if begin <= at < begin + 0.1) for begin in came_s)
            assert most < 25, f"{most} of {len(came_s)} connections in a tenth of a second"


async def test_a_user_and_a_password_are_asked_for_and_tokens_are_renewed(tmp_path: Path) -> None:
    with etcd(tmp_path, "--auth-token-ttl", "1") as (member,):
        async with stores((member.endpoint,)):
            pass
        for words in (
            "user add root:rootpw",
            "user grant-role root root",
            "role add writer",
            "role grant-permission writer --prefix=true readwrite p/",
            "user add disagg:secret",
            "user grant-role disagg writer",
            "auth enable",
        ):
            _etcdctl(member, *words.split())
        right, wrong = Access(user="disagg", password="secret"), Access(user="disagg", password="no")
        async with AsyncExitStack() as stack:
            store = EtcdStore((member.endpoint,), right)
            stack.push_async_callback(store.close)
            lease = await store.grant(3)
            watcher = Watcher(store, "p/", await store.snapshot("p/"))
            await store.write({"p/a": b"1"}, lease)
            await watcher.until({"p/a": b"1"})
            await asyncio.sleep(2.5)  # tokens of etcd 3.4 live for a second here
            await store.write({"p/a": b"2"}, lease)
            await watcher.until({"p/a": b"2"})
            assert not lease.lost.is_set()
            await watcher.stop()
            refused = EtcdStore((member.endpoint,), wrong)
            stack.push_async_callback(refused.close)
            with pytest.raises(StartError, match="refuses user disagg"):
                await refused.snapshot("p/")


async def test_tls_with_a_certificate_of_the_client(tmp_path: Path) -> None:
    pem = _certificates(tmp_path)
    access = Access(tls=True, ca=pem["ca.crt"], certificate=pem["client.crt"], key=pem["client.key"])
    files = {"--cert-file": "server.crt", "--key-file": "server.key", "--trusted-ca-file": "ca.crt"}
    words = [word for name, file in files.items() for word in (name, str(tmp_path / file))]
    with etcd(tmp_path, "--client-cert-auth", *words) as (member,):
        async with stores((member.endpoint,), access=access) as (store,):
            await store.write({"p/a": b"1"})
            assert (await store.snapshot("p/")).entries["p/a"].value == b"1"
        for other in Access(), Access(tls=True, ca=pem["ca.crt"]):
            refused = EtcdStore((member.endpoint,), other)
            with pytest.raises(StoreLost):
                await refused._members.call("read", lambda m: m.kv.get("p/a"), 2.0)
            await refused.close()


def _certificates(folder: Path) -> dict[str, bytes]:
    """A small authority, a server's certificate for 127.0.0.1 and a client's."""

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], check=True, capture_output=True, cwd=folder)

    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-x509", *curve, "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=authority", "-days", "2")
    for name, usage in ("server", "serverAuth,clientAuth"), ("client", "clientAuth"):
        (folder / "extensions").write_text(f"subjectAltName=IP:127.0.0.1\nextendedKeyUsage={usage}\n")
        openssl("req", *curve, "-keyout", f"{name}.key", "-out", "asked.csr", "-subj", f"/CN={name}")
        signed = ("-in", "asked.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-out", f"{name}.crt")
        openssl("x509", "-req", *signed, "-days", "2", "-extfile", "extensions")
    return {file: (folder / file).read_bytes() for file in ("ca.crt", "client.crt", "client.key")}
