"""Processes that read clients' bodies, so that no stream of the process that asks stands still meanwhile.

Way:   frontend/readers.py, or text_service.py in an engine's host -> [BodyReaders.ask] -> a pipe -> the program
In:    bytes below the body limit; in words, their endpoint and the adapters that they may name
Out:   bytes: what the program says of them. Nobody here reads them
Owns:  at most `most` processes, each with one body at a time; started when first needed, gone with this process; the
       bodies that are read, or wait: HELD_BYTES_MAX of them
Fails: Overloaded when all stay busy, and at once for a body too many; BadRequest for one that takes longer than the
       program's own limit; ReaderLost when its process ends

Not threads: JSON is decoded under the interpreter's lock, 8 MB of empty lists in most of a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys

from disagg.errors import BadRequest, Overloaded, ReaderLost
from disagg.host_spec import SECRET_VARIABLE

log = logging.getLogger(__name__)

WAIT_S = 30.0
HELD_BYTES_MAX = 256 << 20
LENGTH_BYTES = 4
LONG_NICENESS = 5  # of what may take its time: beside a busy process it gets a quarter of a core
ONE_CORE = {"RAYON_NUM_THREADS": "1"}  # fastokens would take all for some milliseconds, and gain one or two
END_OF_WORD = b"\n"  # between the endpoint's word, the adapters' names behind it, and the body


class BodyReaders:
    """`program`: a module that speaks as frontend/reader.py does; `order`: the first frame that it gets. `niceness`: of
    its processes once they read, over that of this one, whose streams are to go first."""

    def __init__(self, program: str, order: bytes, most: int, niceness: int = 0) -> None:
        self._program, self._order, self._niceness = program, order, niceness
        self._free = asyncio.Semaphore(most)
        self._idle: list[_Reader] = []
        self._working: set[asyncio.Task[bytes]] = set()
        self._held_bytes = 0

    async def start(self) -> None:
        """One process ahead of the first body: it takes a second to be ready, and nobody waits for that here."""
        async with self._free:
            with contextlib.suppress(ReaderLost):  # it is told; the first body tries again
                self._idle.append(await self._started())

    async def stop(self) -> None:
        working = list(self._working)
        for task in working:
            task.cancel()
        if working:
            await asyncio.wait(working)
        for reader in self._idle:
            await reader.stop()

    async def ask(self, words: str, data: bytes) -> bytes:
        if self._held_bytes and self._held_bytes + len(data) > HELD_BYTES_MAX:
            what = f"long requests that wait to be read hold {HELD_BYTES_MAX >> 20} MiB here already"
            raise Overloaded("readers", what, "retry later")
        self._held_bytes += len(data)
        try:
            return await self._ask(words, data)
        finally:
            self._held_bytes -= len(data)

    async def _ask(self, words: str, data: bytes) -> bytes:
        try:
            async with asyncio.timeout(WAIT_S):
                await self._free.acquire()
        except TimeoutError:
            raise Overloaded("readers", f"no long request could be read within {WAIT_S:g} s", "retry later") from None
        task = asyncio.create_task(self._read(words, data), name="read a long body")
        self._working.add(task)
        task.add_done_callback(self._over)
        return await asyncio.shield(task)  # who leaves does not stop it: that would cost a new reader

    async def _read(self, words: str, data: bytes) -> bytes:
        reader = self._idle.pop() if self._idle else await self._started()
        try:
            answer = await reader.ask(words, data)
        except BaseException:
            await reader.stop()
            raise
        self._idle.append(reader)
        return answer

    def _over(self, task: asyncio.Task[bytes]) -> None:
        self._working.discard(task)
        self._free.release()
        if not task.cancelled():
            task.exception()  # its client may have left: then nobody else looks at it

    async def _started(self) -> _Reader:
        return await _Reader.start(self._program, self._order, self._niceness)


class _Reader:
    """One process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process, self._input, self._output = process, process.stdin, process.stdout

    @classmethod
    async def start(cls, program: str, order: bytes, niceness: int) -> _Reader:
        words = ["-P", "-m", program, str(niceness)]  # -P: nothing of the folder where all this was started
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *words,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                env=ONE_CORE | {name: value for name, value in os.environ.items() if name != SECRET_VARIABLE},
                start_new_session=True,  # a Ctrl-C is the driver's
            )
        except OSError as error:  # no more files, processes or memory
            log.error("a reader of long requests cannot start: %s", error)
            raise ReaderLost("reader", "no process can be started to read this request", "try again later") from None
        reader = cls(process)
        reader._input.write(frame(order))
        return reader

    async def ask(self, words: str, data: bytes) -> bytes:
        try:
            self._input.write(frame(words.encode() + END_OF_WORD, len(data)))
            self._input.write(data)
            await self._input.drain()
            length = int.from_bytes(await self._output.readexactly(LENGTH_BYTES))
            return await self._output.readexactly(length)
        except (asyncio.IncompleteReadError, ConnectionError):
            status = await self._process.wait()
        if status == -signal.SIGPROF:
            what = "this request takes too long to read; send fewer, larger parts"
            raise BadRequest(None, "too_complex", what)
        log.error("a reader of long requests ended with status %d", status)
        raise ReaderLost("reader", "the process that read this request ended", "try again")

    async def stop(self) -> None:
        self._input.close()
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()


def frame(head: bytes, more_bytes: int = 0) -> bytes:
    """The length of all that follows, and the first of it."""
    return (len(head) + more_bytes).to_bytes(LENGTH_BYTES) + head
