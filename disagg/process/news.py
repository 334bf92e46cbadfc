"""Messages from the processes of an incarnation to its actor, and from the actor to the supervisor.

Way:   host, reaper, standby =one JSON line each, on a pipe= [news] -> actor =Ray=> node -> gang -> supervisor
Out:   frozen structs; on the pipe `event` says which
"""

from __future__ import annotations

import os
import signal
from typing import Any

import msgspec

from disagg.host_spec import FOLLOWED, Spare
from disagg.registry.records import IncarnationFacts


class Started(msgspec.Struct, frozen=True, tag_field="event", tag="started"):
    """Of the reaper: the host runs."""

    reaper: int  # pids
    host: int


class Ready(IncarnationFacts, frozen=True, kw_only=True, tag_field="event", tag="ready"):
    """Of the host: it can take legs."""

    spares: tuple[Spare, ...] = ()  # processes that a standby would keep ready
    unfit: str = ""  # why there can be no standby
    # The actor adds:
    way: str = "started"  # how its processes came to be, for people
    log_trouble: str = ""  # why its log lacks lines


class StandbyReady(msgspec.Struct, frozen=True, tag_field="event", tag="spare"):
    """Of a standby host: all is imported."""

    pids: list[int]
    seconds: float
    contexts: int  # processes that hold GPU memory
    sglang: str  # release


class LaneSeen(msgspec.Struct, frozen=True, tag_field="event", tag="lane"):
    lane: str


class LogTrouble(msgspec.Struct, frozen=True, tag_field="event", tag="log"):
    """The log begins to lack lines, or (empty) ceases to."""

    trouble: str


class Exit(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="exit"):
    """Nothing of the incarnation is left: its host ended with `code`, or of `signal`, or was ended because of `why`."""

    code: int | None = None
    signal: str = ""  # SIGKILL
    why: str = ""
    tail: tuple[str, ...] = ()  # last lines of its log
    node: str = ""  # which one, of an engine over several: "node 1 of 2"

    @property
    def status(self) -> str:
        """For people."""
        said = self.why or (f"killed by {self.signal}" if self.signal else f"exit status {self.code}")
        return f"{self.node}: {said}" if self.node else said

    @property
    def has_followed(self) -> bool:
        """Whether that host ended because another host of its engine had."""
        return self.code == FOLLOWED


News = Started | Ready | StandbyReady | LaneSeen | LogTrouble | Exit
VANISHED = Exit(why="its reaper vanished")

encode_news = msgspec.json.encode
decode_news = msgspec.json.Decoder(News).decode


def exit_of(raw_status: int) -> Exit:
    """`raw_status` is waitpid's."""
    code = os.waitstatus_to_exitcode(raw_status)
    return Exit(code=code) if code >= 0 else Exit(signal=signal.Signals(-code).name)


def with_tail(exit_: Exit, tail: Any) -> Exit:
    return msgspec.structs.replace(exit_, tail=tuple(tail))
