"""The life of an engine: one table, one door.

Way:   supervisor -> [EngineLife.advance] at each event; nothing else changes an engine's state
Out:   the engine's record, published at each change: frontends serve what is READY in it
Fails: IllegalTransition, which is a bug, and changes nothing

An incarnation is what happens from STARTING on. It ends DEAD, and the next one begins there.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from enum import Enum, auto
from typing import Any

import msgspec

from disagg.errors import DisaggError
from disagg.registry.records import EngineRecord, State


class Event(Enum):
    START = auto()  # of another incarnation
    PROVEN = auto()  # a transfer with a peer has succeeded: the first one, or one more
    SICK = auto()  # it is not to serve any longer; its processes may still be there
    DRAIN = auto()  # it takes no more, and ends what it has
    DIED = auto()  # by itself, or it could not start
    ENDED = auto()  # by us: it was sick, or is drained


_S, _E = State, Event
NEXT: dict[tuple[State, Event], State] = {
    (_S.NEW, _E.START): _S.STARTING,
    (_S.DEAD, _E.START): _S.STARTING,
    (_S.STARTING, _E.PROVEN): _S.READY,
    (_S.READY, _E.PROVEN): _S.READY,
    (_S.READY, _E.DRAIN): _S.DRAINING,
    (_S.QUARANTINED, _E.ENDED): _S.DEAD,
    (_S.DRAINING, _E.ENDED): _S.DEAD,
}
SERVES = (_S.STARTING, _S.READY, _S.DRAINING)  # it has processes that nothing is known against
NEXT |= {(state, _E.SICK): _S.QUARANTINED for state in SERVES}
NEXT |= {(state, _E.DIED): _S.DEAD for state in (*SERVES, _S.QUARANTINED)}

# What is known of an incarnation alone.
NOTHING_YET: dict[str, Any] = {
    "plane": "",
    "bootstrap": "",
    "pids": {},
    "members": (),
    "devices": "",
    "node": "",
    "place": {},
    "start_s": {},
    "evict": False,
}


class IllegalTransition(DisaggError):
    pass


class EngineLife:
    """Holds the record; `publish` gets each new one. `wall_s`: seconds since 1970."""

    def __init__(
        self,
        record: EngineRecord,
        publish: Callable[[EngineRecord], Awaitable[None]],
        wall_s: Callable[[], float],
    ) -> None:
        self._publish, self._wall_s = publish, wall_s
        self.record = record if record.since_s else msgspec.structs.replace(record, since_s=wall_s())

    def may(self, event: Event) -> bool:
        return (self.record.state, event) in NEXT

    async def advance(self, event: Event, **changes: Any) -> None:
        """The only place that sets a state. Raises IllegalTransition; `changes`: of other fields of the record."""
        before = self.record
        following = NEXT.get((before.state, event))
        if following is None:
            what = f"{event.name} in {before.state.name}"
            raise IllegalTransition(before.life, what, "report this bug")
        if event is Event.START:
            changes = NOTHING_YET | {"incarnation": before.incarnation + 1} | changes
        if following is not before.state:
            changes["since_s"] = self._wall_s()
        await self._become(msgspec.structs.replace(before, state=following, **changes))

    async def note(self, **changes: Any) -> None:
        """What else has become known; the state stays."""
        assert "state" not in changes
        await self._become(msgspec.structs.replace(self.record, **changes))

    async def _become(self, record: EngineRecord) -> None:
        self.record = record
        await self._publish(record)
