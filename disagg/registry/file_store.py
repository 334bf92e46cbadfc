"""A store in a folder, of one host or shared by several.

Way:   publisher -> [FileStore] -> the folder -> [FileStore] of each follower, which looks every POLL_S
Owns:  one file a lease, with all keys of it: written whole, under a lock, by rename after fsync, so that a crash leaves
       the old file or the new one. The file's mtime is the lease's last sign of life; whoever writes next removes the
       files of leases that have run out. `kept` holds the keys without a lease
Fails: StoreLost when the folder cannot be read or written, or its lock is held for LOCK_S. Whoever watches keeps what
       it knows meanwhile
It is polled: inotify does not tell what another host has written.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, ParamSpec, TypeVar

import msgspec

from disagg.folders import own_folder
from disagg.registry.store import (
    ABSENT,
    Batch,
    Conflict,
    Entry,
    Lease,
    LeaseLost,
    Snapshot,
    Store,
    StoreLost,
    difference,
    under,
)

POLL_S = 0.1
LOCK_S, LOCK_POLL_S = 5.0, 0.01
CLOCK_S = 60.0  # between two looks at the folder's clock
KEPT, SUFFIX, PART = "kept.keys", ".keys", ".part"

P = ParamSpec("P")
T = TypeVar("T")


class _File(msgspec.Struct, array_like=True):
    """What is in one."""

    ttl_s: float  # 0: for ever
    entries: dict[str, Entry]


class _Seen(NamedTuple):
    """A file as it was last read."""

    mark: tuple[int, int, int]  # inode, mtime, size
    file: _File


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_File).decode


class FileLease(Lease):
    def __init__(self, ttl_s: float, store: FileStore, name: str) -> None:
        super().__init__(ttl_s)
        self._store, self.name = store, name
        self.keeping: asyncio.Task[None] | None = None

    async def revoke(self) -> None:
        if self.keeping is not None:
            self.keeping.cancel()
        await self._store.remove(self.name)
        self.lost.set()


class FileStore(Store):
    """All file work is in one thread of its own, so that a folder that hangs holds up nobody else."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="registry")
        self._is_made = False
        self._seen: dict[str, _Seen] = {}
        self._ahead_s, self._clock_is_old_s = 0.0, 0.0  # the folder's clock beside ours
        self._leases: list[FileLease] = []

    async def snapshot(self, prefix: str) -> Snapshot:
        entries = await self._run(self._entries)
        return Snapshot(_newest(entries), under(prefix, entries))

    async def watch(self, prefix: str, since: Snapshot) -> AsyncIterator[Batch]:
        known = since.entries
        while True:
            with contextlib.suppress(StoreLost):  # nothing is known to have changed
                entries = await self._run(self._entries)
                found = under(prefix, entries)
                if changes := difference(known, found):
                    known = found
                    yield Batch(_newest(entries), changes)
            await asyncio.sleep(POLL_S)

    async def grant(self, ttl_s: float) -> FileLease:
        lease = FileLease(ttl_s, self, f"{secrets.token_hex(8)}{SUFFIX}")
        await self._run(self._begin, lease.name, ttl_s)
        lease.keeping = asyncio.create_task(self._keep(lease), name=f"keep {lease.name}")
        self._leases.append(lease)
        return lease

    async def write(
        self,
        changes: Mapping[str, bytes | None],
        lease: Lease | None = None,
        expect: Mapping[str, int] | None = None,
    ) -> None:
        name = KEPT
        if lease is not None:
            assert isinstance(lease, FileLease)
            name = lease.name
        try:
            await self._run(self._write, dict(changes), name, dict(expect or {}))
        except LeaseLost:
            if lease is not None:
                lease.lost.set()
            raise

    async def remove(self, name: str) -> None:
        await self._run(self._remove, name)

    async def close(self) -> None:
        for lease in self._leases:
            if lease.keeping is not None:
                lease.keeping.cancel()
        self._thread.shutdown(wait=False)

    async def _keep(self, lease: FileLease) -> None:
        while True:
            await asyncio.sleep(lease.ttl_s / 3)
            with contextlib.suppress(StoreLost):  # the next sign of life may come in time
                if not await self._run(self._touch, lease.name):
                    lease.lost.set()
                    return

    async def _run(self, work: Callable[P, T], *arguments: P.args, **names: P.kwargs) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: work(*arguments, **names))
        except (OSError, msgspec.DecodeError) as error:
            raise StoreLost(str(self.folder), f"the registry's folder cannot be used: {error}") from None

    # in the thread

    def _entries(self) -> dict[str, Entry]:
        """All keys of leases that live."""
        found: dict[str, Entry] = {}
        for _name, file in self._living():
            for key, entry in file.entries.items():
                if key not in found or found[key].version < entry.version:  # it is being moved to another lease
                    found[key] = entry
        return found

    def _living(self) -> Iterator[tuple[str, _File]]:
        now_s, names = self._folder_now_s(), set[str]()
        for item in os.scandir(self.folder):
            if not item.name.endswith(SUFFIX):
                continue
            try:
                stat = item.stat()
                mark = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
                if (seen := self._seen.get(item.name)) is None or seen.mark != mark:
                    seen = self._seen[item.name] = _Seen(mark, _decode(Path(item.path).read_bytes()))
            except FileNotFoundError:  # revoked in between
                continue
            names.add(item.name)
            if not seen.file.ttl_s or now_s - stat.st_mtime <= seen.file.ttl_s:
                yield item.name, seen.file
        for gone in self._seen.keys() - names:
            del self._seen[gone]

    def _write(self, changes: dict[str, bytes | None], name: str, expect: dict[str, int]) -> None:
        with self._locked():
            living = dict(self._living())
            if name not in living and name != KEPT:
                raise LeaseLost(str(self.folder), f"the lease {name} has run out")
            entries = self._entries()
            for key, version in expect.items():
                if (entries[key].version if key in entries else ABSENT) != version:
                    raise Conflict(str(self.folder), f"{key} is in another version")
            version = max(_newest(entries) + 1, time.time_ns())
            put = {key: Entry(value, version) for key, value in changes.items() if value is not None}
            mine = living.pop(name, _File(0.0, {}))
            kept = {key: entry for key, entry in mine.entries.items() if key not in changes}
            if put or len(kept) < len(mine.entries):
                self._replace(name, _File(mine.ttl_s, kept | put))
            for other, file in living.items():
                left = {key: entry for key, entry in file.entries.items() if key not in changes}
                if len(left) < len(file.entries):
                    self._replace(other, _File(file.ttl_s, left), keeps_age=True)
            for dead in self._seen.keys() - living.keys() - {name}:
                (self.folder / dead).unlink(missing_ok=True)

    def _begin(self, name: str, ttl_s: float) -> None:
        with self._locked():
            self._replace(name, _File(ttl_s, {}))

    def _replace(self, name: str, file: _File, *, keeps_age: bool = False) -> None:
        path, part = self.folder / name, self.folder / f"{name}{PART}"
        with part.open("wb") as writing:
            writing.write(_encode(file))
            writing.flush()
            if keeps_age:  # it is another's: that we write is no sign of its life
                age = path.stat()
                os.utime(writing.fileno(), ns=(age.st_atime_ns, age.st_mtime_ns))
            os.fsync(writing.fileno())
        part.rename(path)
        self._sync_folder()

    def _remove(self, name: str) -> None:
        with self._locked():
            (self.folder / name).unlink(missing_ok=True)
            self._sync_folder()

    def _sync_folder(self) -> None:
        folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _touch(self, name: str) -> bool:
        """False: the lease is gone."""
        if not self.folder.is_dir():
            raise FileNotFoundError(self.folder)
        try:
            os.utime(self.folder / name)
        except FileNotFoundError:
            return False
        return True

    def _folder_now_s(self) -> float:
        """By the clock that stamps its files: on a shared folder it is another host's."""
        if time.monotonic() >= self._clock_is_old_s:
            os.utime(self.folder / self._lock_path())
            self._ahead_s = self._lock_path().stat().st_mtime - time.time()
            self._clock_is_old_s = time.monotonic() + CLOCK_S
        return time.time() + self._ahead_s

    def _lock_path(self) -> Path:
        path = self.folder / "lock"
        if not path.exists():
            path.touch(0o600)
        return path

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One writer at a time; a writer that dies lets go of it."""
        if not self._is_made:  # later, a folder that is not there is a mount that is lost
            own_folder(self.folder)
            self._is_made = True
        with self._lock_path().open("rb") as lock:
            give_up_s = time.monotonic() + LOCK_S
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > give_up_s:
                        raise TimeoutError(f"{lock.name} is held by another for {LOCK_S:g} s") from None
                    time.sleep(LOCK_POLL_S)
            for part in self.folder.glob(f"*{PART}"):  # of a writer that died
                part.unlink(missing_ok=True)
            yield


def _newest(entries: Mapping[str, Entry]) -> int:
    return max((entry.version for entry in entries.values()), default=ABSENT)
