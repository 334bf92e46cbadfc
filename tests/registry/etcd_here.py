"""Real etcd members for tests, on loopback or in a namespace; and a proxy through which a network can be lost."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from disagg.cluster.ports import free_port
from disagg.registry.etcd_store import EtcdStore
from disagg.registry.store import StoreLost

ETCD = shutil.which("etcd") or ""
UP_S = 20.0


class Etcd:
    """One member. `more`: further arguments; `within`: a command that runs the rest, where `host` is an address."""

    def __init__(
        self,
        folder: Path,
        name: str,
        port: int,
        peer_port: int,
        cluster: str,
        *more: str,
        host: str = "127.0.0.1",
        within: Sequence[str] = (),
    ) -> None:
        scheme = "https" if "--cert-file" in more else "http"
        self.endpoint = f"{host}:{port}"
        self._log = folder / f"{name}.log"
        self._command = [
            *within,
            *(ETCD, "--name", name, "--data-dir", str(folder / name), "--initial-cluster", cluster),
            *("--listen-client-urls", f"{scheme}://{self.endpoint}"),
            *("--advertise-client-urls", f"{scheme}://{self.endpoint}"),
            *("--listen-peer-urls", f"http://{host}:{peer_port}"),
            *("--initial-advertise-peer-urls", f"http://{host}:{peer_port}"),
            *("--heartbeat-interval", "50", "--election-timeout", "500", "--unsafe-no-fsync", *more),
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@contextmanager
def etcd(
    folder: Path, *more: str, members: int = 1, host: str = "127.0.0.1", within: Sequence[str] = ()
) -> Iterator[list[Etcd]]:
    if not ETCD:
        pytest.skip("needs etcd: .ci/tools brings it, and continuous integration has it")
    ports = [(free_port(), free_port()) for _ in range(members)]
    cluster = ",".join(f"m{number}=http://{host}:{peer}" for number, (_, peer) in enumerate(ports))
    made = [
        Etcd(folder, f"m{number}", *ports[number], cluster, *more, host=host, within=within)
        for number in range(members)
    ]
    try:
        for each in made:
            each.start()
        yield made
    finally:
        for each in made:
            each.kill()


async def answers(store: EtcdStore) -> EtcdStore:
    """The store, once etcd is up."""
    give_up_s = time.monotonic() + UP_S
    while True:
        try:
            await store.snapshot("nothing/")
            return store
        except StoreLost:
            assert time.monotonic() < give_up_s, "etcd does not come up"


class Proxy:
    """Hands on what comes to `to`. `cut`: nothing passes any more, and nobody is told; `mend`: it passes again."""

    def __init__(self, to: str) -> None:
        self._to = to.rsplit(":", 1)
        self._passes = asyncio.Event()
        self._passes.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.came_s: list[float] = []  # when each connection came

    def cut(self) -> None:
        self._passes.clear()

    def mend(self) -> None:
        """Connections of before are reset, as after any long loss."""
        for task in self._tasks:
            task.cancel()
        self._passes.set()

    async def end(self) -> None:
        """Returns when its connections are closed. One that is not when its loop ends fails a later test."""
        tasks = list(self._tasks)
        self.mend()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.came_s.append(time.monotonic())
        try:
            await self._passes.wait()
            there = await asyncio.open_connection(self._to[0], int(self._to[1]))
            async with asyncio.TaskGroup() as both:
                both.create_task(self._hand_on(reader, there[1]))
                both.create_task(self._hand_on(there[0], writer))
        except (OSError, ExceptionGroup, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _hand_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer):
            while data := await reader.read(1 << 16):
                await self._passes.wait()
                writer.write(data)
                await writer.drain()


@asynccontextmanager
async def proxy(to: str) -> AsyncIterator[tuple[Proxy, str]]:
    made = Proxy(to)
    server = await asyncio.start_server(made.serve, "127.0.0.1")
    try:
        yield made, f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await made.end()
