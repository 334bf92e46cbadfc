"""An engine's standby: the processes of its next incarnation, which have imported everything and wait for it.

Way:   EngineActor =pipe= [Standby] -> standby reaper -> standby host -> its spare children
In:    an incarnation that is READY: its environment, and which processes it has started
Out:   the pipe of a reaper that only lacks its HostSpec
Owns:  that pipe until it is taken; it closes with the actor, and then nothing of the standby is left
Fails: NoStandby says why the next incarnation has to be spawned. The actor's log has what a standby printed that ended
       early
"""

from __future__ import annotations

import asyncio
import logging
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib import metadata

from disagg.host_spec import HostSpec, StandbySpec, encode_standby
from disagg.process.news import VANISHED, Exit, StandbyReady, decode_news

log = logging.getLogger(__name__)

IMPORTS_S = 180.0  # a standby that takes longer than this to import everything is ended
LINE_MAX_BYTES = 1 << 20


class NoStandby(Exception):
    """There is no standby, or none that fits; the message says why."""


class Standby:
    """`start` begins it; `claim` gives it away."""

    def __init__(self, standby: StandbySpec, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._standby, self._reader, self._writer = standby, reader, writer
        self._until_s = time.monotonic() + IMPORTS_S
        self._facts: StandbyReady | None = None
        self._ended = ""
        self._listening = asyncio.create_task(self._listen(), name="standby")

    @classmethod
    async def start(cls, standby: StandbySpec, environment: Mapping[str, str]) -> Standby:
        """`environment`: of the reaper, to which the standby's own is added."""
        pipe = spawn_with_pipe("disagg.process.standby_reaper", environment)
        reader, writer = await asyncio.open_unix_connection(sock=pipe, limit=LINE_MAX_BYTES)
        writer.write(encode_standby(standby) + b"\n")
        return cls(standby, reader, writer)

    @property
    def has_ended(self) -> bool:
        return bool(self._ended)

    @property
    def pids(self) -> list[int]:
        """Of its host and the host's children; empty until it is ready."""
        return self._facts.pids if self._facts else []

    async def claim(self, spec: HostSpec) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, str]:
        """The pipe of a reaper that waits for `spec`, and how far its start had come. Raises NoStandby after ending it.

        A standby that still imports is taken too: it is ahead of a new process, and the reaper raises its priority."""
        self._listening.cancel()
        await asyncio.gather(self._listening, return_exceptions=True)
        if why := self._ended or self._misfit(spec):
            self.close()
            raise NoStandby(why)
        return self._reader, self._writer, "spare" if self._facts else "spare, still importing"

    def close(self) -> None:
        self._listening.cancel()
        self._writer.close()

    def _misfit(self, spec: HostSpec) -> str:
        if spec.environment != self._standby.environment:
            names = {name for name, _ in spec.environment.items() ^ self._standby.environment.items()}
            return f"it was started with other values of {', '.join(sorted(names))}"
        if self._facts and self._facts.sglang != metadata.version("sglang"):
            return f"it has imported SGLang {self._facts.sglang}, and {metadata.version('sglang')} is installed now"
        if not self._facts and time.monotonic() > self._until_s:
            return f"it has not imported everything within {IMPORTS_S:g} s"
        return ""

    async def _listen(self) -> None:
        """Reads what the standby reports until it is taken, or has ended."""
        exit_ = VANISHED
        try:
            while line := await self._reader.readline():
                match decode_news(line):
                    case StandbyReady() as ready:
                        self._facts = ready
                        log.info("a standby is ready after %g s: %s", ready.seconds, ready.pids)
                        if ready.contexts:
                            log.warning("%d of its processes hold GPU memory: a CUDA context each", ready.contexts)
                    case Exit() as exit_:
                        pass
        except ConnectionError:
            pass
        self._ended = f"it has ended ({exit_.status})"
        log.warning("the standby has ended: %s", "\n".join([self._ended, *exit_.tail]))


def spawn_with_pipe(module: str, environment: Mapping[str, str]) -> socket.socket:
    """Our end of the pipe to a reaper in a process of its own."""
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-P", "-m", module, str(theirs.fileno())]
    with theirs:
        subprocess.Popen(command, env=environment, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
    ours.setblocking(False)
    return ours
