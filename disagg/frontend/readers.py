"""Reads long bodies in processes of their own, so that no stream of this one stands still meanwhile.

Way:   generation -> [Readers.read] -> here when short, else a pipe -> frontend/reader.py -> the same there
In:    bytes below the body limit
Out:   what the endpoint's row of READINGS makes of the body (disagg/frontend/reading.py): token ids, most often
Owns:  at most READERS_MAX processes, each with one body at a time; started when first needed, gone with this process
Fails: what `read` raises there; Overloaded when all readers stay busy; BadRequest for a body that takes longer than
       READ_S; ReaderLost when its process ends

Not threads: JSON is decoded under the interpreter's lock, 8 MB of empty lists in most of a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable

import msgspec

from disagg.adapters import Served
from disagg.errors import BadRequest, Overloaded, ReaderLost
from disagg.frontend.reading import Read, is_short, read
from disagg.host_spec import SECRET_VARIABLE
from disagg.tokenizer.codec import Codec
from disagg.tokenizer.overrides import Overrides

log = logging.getLogger(__name__)

READERS_MAX = 2
WAIT_S = 30.0
READ_S = 10.0  # of a processor, by the reader's own alarm, which ends it
LENGTH_BYTES = 4
END_OF_WORD = b"\n"  # between the endpoint's word, the adapters' names behind it, and the body


class Order(msgspec.Struct, array_like=True, frozen=True):
    """The first frame that a reader gets."""

    folder: str
    model: str  # its name
    read_s: float
    overrides: Overrides  # the deployment's, over the model's own files
    refuses_unknown: bool


class Refusal(msgspec.Struct, frozen=True, tag=True):
    args: tuple[str | None, str, str, int]  # of the BadRequest


decode_answer = msgspec.msgpack.Decoder(Read | Refusal).decode


class Readers:
    def __init__(
        self, codec: Codec, served: Callable[[], Served], read_s: float = READ_S, *, refuses_unknown: bool = True
    ) -> None:
        """`served`: what may be named now. `refuses_unknown`: see `read`."""
        self._codec, self._served, self._refuses_unknown = codec, served, refuses_unknown
        order = Order(str(codec.folder), served().model, read_s, codec.overrides, refuses_unknown)
        self._order = msgspec.msgpack.encode(order)
        self._free = asyncio.Semaphore(READERS_MAX)
        self._idle: list[_Reader] = []
        self._working: set[asyncio.Task[Read]] = set()

    async def start(self) -> None:
        """One process ahead of the first long body: it takes a second to be ready, and nobody waits for that here."""
        async with self._free:
            with contextlib.suppress(ReaderLost):  # it is told; the first long body tries again
                self._idle.append(await _Reader.start(self._order))

    async def stop(self) -> None:
        working = list(self._working)
        for task in working:
            task.cancel()
        if working:
            await asyncio.wait(working)
        for reader in self._idle:
            await reader.stop()

    async def read(self, data: bytes, endpoint: str) -> Read:
        if is_short(data, self._codec, endpoint):
            return read(data, endpoint, self._served(), self._codec, refuses_unknown=self._refuses_unknown)
        try:
            async with asyncio.timeout(WAIT_S):
                await self._free.acquire()
        except TimeoutError:
            raise Overloaded("readers", f"no long request could be read within {WAIT_S:g} s", "retry later") from None
        task = asyncio.create_task(self._read(data, endpoint), name="read a long body")
        self._working.add(task)
        task.add_done_callback(self._over)
        return await asyncio.shield(task)  # who leaves does not stop it: that would cost a new reader

    async def _read(self, data: bytes, endpoint: str) -> Read:
        reader = self._idle.pop() if self._idle else await _Reader.start(self._order)
        try:
            answer = await reader.ask(data, " ".join((endpoint, *self._served().adapters)))
        except BaseException:
            await reader.stop()
            raise
        self._idle.append(reader)
        if isinstance(answer, Refusal):
            raise BadRequest(*answer.args)
        return answer

    def _over(self, task: asyncio.Task[Read]) -> None:
        self._working.discard(task)
        self._free.release()
        if not task.cancelled():
            task.exception()  # its client may have left: then nobody else looks at it


class _Reader:
    """One process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process, self._input, self._output = process, process.stdin, process.stdout

    @classmethod
    async def start(cls, order: bytes) -> _Reader:
        words = ["-P", "-m", "disagg.frontend.reader"]  # -P: nothing of the folder where all this was started
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *words,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                env={name: value for name, value in os.environ.items() if name != SECRET_VARIABLE},
                start_new_session=True,  # a Ctrl-C is the driver's
            )
        except OSError as error:  # no more files, processes or memory
            log.error("a reader of long requests cannot start: %s", error)
            raise ReaderLost("reader", "no process can be started to read this request", "try again later") from None
        reader = cls(process)
        reader._input.write(frame(order))
        return reader

    async def ask(self, data: bytes, words: str) -> Read | Refusal:
        """`words`: the endpoint's, and the adapters' names."""
        try:
            self._input.write(frame(words.encode() + END_OF_WORD, len(data)))
            self._input.write(data)
            await self._input.drain()
            length = int.from_bytes(await self._output.readexactly(LENGTH_BYTES))
            answer: Read | Refusal = decode_answer(await self._output.readexactly(length))
            return answer
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
