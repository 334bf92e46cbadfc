"""Frontends as processes of their own, kept alive by the driver.

Way:   serve -> [Frontends] -> FrontendProcess -> python -m disagg.frontend.main
In:    a FrontendSpec on its standard input, which stays open: the frontend ends when it closes
Out:   one line on its standard output when it listens; its log lines on ours; its record in the registry
"""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import Protocol

import msgspec

from disagg.config.frontend import base_url
from disagg.errors import StartError
from disagg.frontend.spec import LISTENING, FrontendSpec
from disagg.registry.records import FrontendRecord

log = logging.getLogger(__name__)

START_S = 30.0
RESTART_PAUSE_S = 1.0
STOP_MORE_S = 4.0  # beyond `stop_s` a frontend takes some 2 s to cancel what still runs, and to tell its clients


class Listed(Protocol):
    """Where it is written which frontends listen: the controller's registry, or an Announcer."""

    async def put_frontend(self, record: FrontendRecord) -> None: ...

    async def remove_frontend(self, number: int) -> None: ...


class FrontendProcess:
    """`registry`: where it is written that it listens."""

    def __init__(self, spec: FrontendSpec, environment: dict[str, str], registry: Listed | None = None) -> None:
        self.spec, self._environment, self._registry = spec, environment, registry
        self.listens = asyncio.Event()
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Returns when it listens; raises StartError with what it said."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            "disagg.frontend.main",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=self._environment,
            start_new_session=True,  # a Ctrl-C is the driver's: it ends the frontend in its order
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(msgspec.json.encode(self.spec) + b"\n")
        try:
            async with asyncio.timeout(START_S):
                said = await self._process.stdout.readline()
        except TimeoutError:
            said = b"it did not listen in time"
        word, _, peer = said.decode(errors="replace").strip().partition(" ")
        if word != LISTENING:
            await self.stop()
            where, _, what = said.decode(errors="replace").strip().partition(": ")
            raise StartError(where or "frontend", what or "it ended without a word; see the log above")
        if self._registry is not None:
            url = base_url(self.spec.host, self.spec.port, is_tls=self.spec.tls is not None)
            record = FrontendRecord(number=self.spec.number, url=url, pid=self.pid, peer=peer)
            await self._registry.put_frontend(record)
        self.listens.set()

    async def renew(self, spec: FrontendSpec) -> None:
        """Ends it in order; `keep_alive` starts it again, as `spec` says."""
        self.spec = spec
        self.listens.clear()
        await self.stop()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def keep_alive(self) -> None:
        """Starts it again whenever it ends, until this is cancelled."""
        while True:
            assert self._process is not None
            status = await self._process.wait()
            if self._registry is not None:
                await self._registry.remove_frontend(self.spec.number)
            log.error("frontend %d ended with status %d; starting it again", self.spec.number, status)
            await asyncio.sleep(RESTART_PAUSE_S)
            try:
                await self.start()
            except (StartError, OSError) as error:
                log.error("%s", error)

    async def stop(self) -> None:
        """It stops listening, lets what runs end within stop_s, cancels the rest, and is killed if it stays."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        try:
            process.terminate()
            await asyncio.wait_for(process.wait(), self.spec.stop_s + STOP_MORE_S)
        except TimeoutError:
            process.kill()
            await process.wait()
        except ProcessLookupError:
            pass


class Frontends:
    """`count` of them, which share the port of `spec`. The kernel gives each connection to one that listens."""

    def __init__(self, spec: FrontendSpec, count: int, environment: dict[str, str], registry: Listed) -> None:
        if count > 1:
            spec = msgspec.structs.replace(spec, shares_port=True, has_peers=True)
        self._processes = [
            FrontendProcess(msgspec.structs.replace(spec, number=number), environment, registry)
            for number in range(count)
        ]

    async def start(self) -> None:
        """Returns when all listen; raises StartError of the first that does not."""
        await asyncio.gather(*(process.start() for process in self._processes))

    async def keep_alive(self) -> None:
        """Until this is cancelled."""
        await asyncio.gather(*(process.keep_alive() for process in self._processes))

    async def stop(self) -> None:
        await asyncio.gather(*(process.stop() for process in self._processes))
