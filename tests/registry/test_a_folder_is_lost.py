"""Faults of a registry in a folder: writers that are killed or stopped, and the folder itself out of reach."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import pytest
from test_store_contract import NOTHING, Watcher

from disagg.errors import StartError
from disagg.registry import file_store
from disagg.registry.file_store import FileStore
from disagg.registry.store import LeaseLost, StoreLost

WRITES_ON = """
import asyncio, itertools, sys
from pathlib import Path
from disagg.registry.file_store import FileStore

async def main() -> None:
    store = FileStore(Path(sys.argv[1]))
    lease = await store.grant(float(sys.argv[2]))
    for number in itertools.count():
        value = b"%d" % number
        await store.write({f"p/{each}": value * 50 for each in range(50)}, lease)
        print(number, flush=True)
        await asyncio.sleep(float(sys.argv[3]))

asyncio.run(main())
"""


def _writer(folder: Path, lease_s: float, pause_s: float) -> subprocess.Popen[str]:
    """Returns after its first write."""
    command = [sys.executable, "-c", WRITES_ON, str(folder), str(lease_s), str(pause_s)]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    assert writer.stdout.readline() == "0\n"
    return writer


def _end(writer: subprocess.Popen[str]) -> None:
    if writer.poll() is None:
        writer.kill()
        writer.communicate()


async def test_whenever_one_looks_and_whenever_a_writer_is_killed_a_state_is_whole(tmp_path: Path) -> None:
    random, reader = Random(1), FileStore(tmp_path)

    async def is_whole() -> bool:
        values = {entry.value for entry in (await reader.snapshot("p/")).entries.values()}
        return len(values) == 1  # all fifty of one write

    for _ in range(4):
        writer = _writer(tmp_path, 60, 0.0)
        until_s = time.monotonic() + random.uniform(0.2, 0.4)
        while time.monotonic() < until_s:
            assert await is_whole()
        _end(writer)
        assert await is_whole()
    (tmp_path / "0.keys.part").write_bytes(b"of one that was killed while it wrote")
    async with asyncio.timeout(2):  # their locks went with them
        await reader.write({"q/a": b""})
    assert not list(tmp_path.glob("*.part"))
    await reader.close()


async def test_a_writer_that_was_stopped_for_too_long_has_lost_its_lease(tmp_path: Path) -> None:
    writer, other = _writer(tmp_path, 1.0, 3.0), FileStore(tmp_path)
    try:
        watcher = Watcher(other, "p/", NOTHING)
        writer.send_signal(signal.SIGSTOP)
        async with asyncio.timeout(10):
            while not watcher.batches or watcher.entries:
                await asyncio.sleep(0.05)
        await other.write({"q/a": b""})
        assert len(list(tmp_path.glob("*.keys"))) == 1, "what ran out is cleared away"
        writer.send_signal(signal.SIGCONT)
        _, said = await asyncio.to_thread(writer.communicate, timeout=15)
        assert writer.returncode == 1
        assert "LeaseLost" in said
        await watcher.stop()
    finally:
        _end(writer)
        await other.close()


async def test_a_folder_out_of_reach_changes_nothing_for_those_who_know_it(tmp_path: Path) -> None:
    folder, away = tmp_path / "registry", tmp_path / "away"
    one, other = FileStore(folder), FileStore(folder)
    lease = await one.grant(2)
    await one.write({"p/a": b"1"}, lease)
    watcher = Watcher(other, "p/", NOTHING)
    await watcher.until({"p/a": b"1"})
    folder.rename(away)
    with pytest.raises(StoreLost, match="cannot be used"):
        await one.write({"p/a": b"2"}, lease)
    with pytest.raises(StoreLost):
        await other.snapshot("p/")
    await asyncio.sleep(2.5)
    assert watcher.values == {"p/a": b"1"}
    assert not folder.exists(), "a mount that is lost is not made anew beneath it"
    away.rename(folder)
    async with asyncio.timeout(5):
        while True:
            try:
                await one.write({"p/a": b"2"}, lease)
                break
            except LeaseLost:
                lease = await one.grant(2)
    await watcher.until({"p/a": b"2"})
    await watcher.stop()
    await one.close()
    await other.close()


async def test_a_lock_that_is_held_is_not_waited_for_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_store, "LOCK_S", 0.2)
    store = FileStore(tmp_path)
    await store.write({"p/a": b""})
    holder = subprocess.Popen(["flock", str(tmp_path / "lock"), "sleep", "30"], start_new_session=True)
    try:
        await asyncio.sleep(0.5)
        began_s = time.monotonic()
        with pytest.raises(StoreLost, match="held by another"):
            await store.write({"p/a": b""})
        assert time.monotonic() - began_s < 2
        assert (await store.snapshot("p/")).entries, "who reads needs no lock"
    finally:
        os.killpg(holder.pid, signal.SIGKILL)
        holder.wait()
    await store.write({"p/a": b"2"})
    await store.close()


async def test_clocks_of_hosts_need_not_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader's is an hour ahead of the folder's, and then an hour behind."""
    one, here_s = FileStore(tmp_path), time.time
    await one.write({"p/a": b""}, await one.grant(3))
    for ahead_s in 3600.0, -3600.0:
        monkeypatch.setattr(file_store.time, "time", lambda ahead_s=ahead_s: here_s() + ahead_s)
        other = FileStore(tmp_path)
        assert list((await other.snapshot("p/")).entries) == ["p/a"]
        await other.close()
    await one.close()


async def test_another_users_folder_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    store = FileStore(tmp_path / "link")
    with pytest.raises(StartError, match="another user's, or a link"):
        await store.grant(60)
    await store.close()
