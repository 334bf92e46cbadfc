"""What has happened to a table since someone looked last, merged: one entry a key, however often it has changed.

Way:   Table -> [Changes] -> a watcher, who may be slow; in a frame to a frontend, whose own Table takes them in
Owns:  nothing that the table has not; what is large here was large there
"""

from __future__ import annotations

import msgspec

from disagg.adapters import Adapter
from disagg.registry.met import Met
from disagg.registry.records import EngineRecord


class Changes(msgspec.Struct):
    """To be applied in this order: `forgotten`, `met`, `records`. The changes of an empty table are its whole content.

    `records`: engine id -> its newest record; None: it was removed. `adapters`: the same, by name. `revision`: of the
    table after the last of them.
    """

    revision: int = 0
    records: dict[str, EngineRecord | None] = {}
    met: Met = msgspec.field(default_factory=Met)
    forgotten: dict[str, None] = {}  # lives
    adapters: dict[str, Adapter | None] = {}

    def forget(self, life: str) -> None:
        self.met.forget(life)
        self.forgotten[life] = None

    def __bool__(self) -> bool:
        return bool(self.records or self.forgotten or len(self.met) or self.adapters)
