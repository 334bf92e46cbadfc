"""The stream by which a scheduler tells its host what its prefix cache holds.

Way:   scheduler (plugins/kv_events.py) -> [CacheVoice] =unix socket=> [CacheListener] -> KvBook
Form:  frames: 4 bytes of little-endian length, then a Telling; the first event of a stream is Begun
Fails: nothing is lost unnoticed. A host that does not read makes the scheduler give the stream up at UNSENT_MAX_BYTES,
       and a host that cannot use what it read ends the stream: then the scheduler opens another one, and says all anew
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from disagg.kv_events.events import Begun, Event, Telling, encode_telling

NAME = "kv.sock"
UNSENT_MAX_BYTES = 32 << 20
AGAIN_S = 1.0  # between two tries to open a stream
LOOK_S = 0.1  # how often a silent stream is looked at: has the host ended it?
READ_BYTES = 64 << 10  # at once: a few hundred KV blocks, which take the host about a millisecond


class CacheVoice:
    """A scheduler's end. `say` what happens, and `flush` once a round; neither ever waits."""

    def __init__(self, folder: Path, dp_rank: int) -> None:
        self._path, self._dp_rank = str(folder / NAME), dp_rank
        self._events: list[Event] = []
        self._at_s = 0.0
        self._unsent = bytearray()
        self._socket: socket.socket | None = None
        self._look_s = 0.0  # when to look again, or to try again
        self.streams = 0  # opened so far

    @property
    def unsent_bytes(self) -> int:
        return len(self._unsent)

    def say(self, event: Event) -> None:
        """Lost where no stream is open: the next one begins with all that is there."""
        if self._socket is not None:
            if not self._events:
                self._at_s = time.monotonic()
            self._events.append(event)

    def flush(self) -> bool:
        """True when a new stream has been opened: all that is there is to be said."""
        if self._events:
            telling = encode_telling(Telling(self._at_s, self._events))
            self._unsent += len(telling).to_bytes(4, "little") + telling
            self._events = []
        elif not self._unsent:
            now_s = time.monotonic()
            if now_s < self._look_s:
                return False
            self._look_s = now_s + LOOK_S
            if self._socket is None:
                return self._open(now_s)
            self._look()
            return False
        self._send()
        return False

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._unsent.clear()
        self._events = []

    def _open(self, now_s: float) -> bool:
        ours = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        ours.setblocking(False)
        try:
            ours.connect(self._path)
        except OSError:
            ours.close()
            self._look_s = now_s + AGAIN_S
            return False
        self._socket = ours
        self.streams += 1
        self.say(Begun(self._dp_rank))
        return True

    def _look(self) -> None:
        assert self._socket is not None
        try:
            if not self._socket.recv(1):
                self.close()
        except BlockingIOError:
            pass
        except OSError:
            self.close()

    def _send(self) -> None:
        if self._socket is None:
            return
        try:
            sent = self._socket.send(self._unsent)
            del self._unsent[:sent]
        except BlockingIOError:
            if len(self._unsent) > UNSENT_MAX_BYTES:
                self.close()
        except OSError:
            self.close()


class CacheListener:
    """The host's end; it must exist before the schedulers do. `listen` once the loop is there."""

    def __init__(self, folder: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.setblocking(False)
        self._socket.bind(str(folder / NAME))
        self._socket.listen(64)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._streams: dict[int, _Stream] = {}  # by dp rank

    def listen(self, loop: asyncio.AbstractEventLoop, on_telling: Callable[[int, bytes], None]) -> None:
        """`on_telling(dp rank, a packed Telling)` runs on the loop; an empty one: that rank is not heard any more."""

        def accept() -> None:
            with contextlib.suppress(BlockingIOError):
                while True:
                    theirs, _ = self._socket.accept()
                    theirs.setblocking(False)
                    _Stream(loop, theirs, self._streams, on_telling)

        self._loop = loop
        loop.add_reader(self._socket.fileno(), accept)

    def again(self, dp_rank: int) -> None:
        """Ends that rank's stream: it will say all anew, in another one."""
        if (stream := self._streams.pop(dp_rank, None)) is not None:
            stream.end()

    def hold(self, dp_rank: int, seconds: float) -> None:
        """Reads nothing of that rank for a while."""
        if (stream := self._streams.get(dp_rank)) is not None:
            stream.hold(seconds)

    def close(self) -> None:
        if self._loop is not None:
            self._loop.remove_reader(self._socket.fileno())
        for stream in list(self._streams.values()):
            stream.end()
        self._socket.close()


class _Stream:
    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        theirs: socket.socket,
        streams: dict[int, _Stream],
        on_telling: Callable[[int, bytes], None],
    ) -> None:
        self._loop, self._socket, self._streams, self._on_telling = loop, theirs, streams, on_telling
        self._buffer = bytearray()
        self._dp_rank: int | None = None
        self._is_over = False
        loop.add_reader(theirs.fileno(), self._readable)

    def end(self) -> None:
        if not self._is_over:
            self._is_over = True
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()

    def hold(self, seconds: float) -> None:
        self._loop.remove_reader(self._socket.fileno())
        self._loop.call_later(seconds, self._go_on)

    def _go_on(self) -> None:
        if not self._is_over:
            self._loop.add_reader(self._socket.fileno(), self._readable)

    def _readable(self) -> None:
        """One piece; the loop calls again while there is more, after what else it has to do."""
        try:
            data = self._socket.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._lost()
            return
        buffer = self._buffer
        buffer += data
        while not self._is_over and len(buffer) >= 4:
            end = 4 + int.from_bytes(buffer[:4], "little")
            if len(buffer) < end:
                break
            telling = bytes(buffer[4:end])
            del buffer[:end]  # before: what raises is not told twice
            self._tell(telling)

    def _tell(self, telling: bytes) -> None:
        if self._dp_rank is None:
            self._dp_rank = _who_begins(telling)
            if self._dp_rank is None:
                self.end()
                return
            if (before := self._streams.get(self._dp_rank)) is not None:
                before.end()
            self._streams[self._dp_rank] = self
        self._on_telling(self._dp_rank, telling)

    def _lost(self) -> None:
        self.end()
        if self._dp_rank is not None and self._streams.get(self._dp_rank) is self:
            del self._streams[self._dp_rank]
            self._on_telling(self._dp_rank, b"")


def _who_begins(telling: bytes) -> int | None:
    try:
        first = msgspec.msgpack.decode(telling, type=Telling).events[0]
    except (msgspec.DecodeError, UnicodeDecodeError, IndexError):
        return None
    return first.dp_rank if isinstance(first, Begun) else None
