"""What has happened to a table since someone looked last, merged: one entry a key, however often it has changed.

Way:   Table -> [Changes] -> a watcher, who may be slow; keys.py spells them as keys of a store, and back
Owns:  nothing that the table has not; what is large here was large there
"""

from __future__ import annotations

from dataclasses import dataclass, field

from disagg.adapters import Adapter
from disagg.registry.met import Pair
from disagg.registry.records import EngineRecord, FrontendRecord, ModelRecord, SealedSpec


@dataclass(slots=True)
class Changes:
    """The changes of an empty table are its whole content. `revision`: of the table after the last of them.

    `records`: engine id -> its newest record; None: it was removed. `met`: False: one of the two has ended. `adapters`
    by name, `frontends` by number, `models` by key: as `records`. `spec`: None: it is as it was.
    """

    revision: int = 0
    met: dict[Pair, bool] = field(default_factory=dict)
    records: dict[str, EngineRecord | None] = field(default_factory=dict)
    adapters: dict[str, Adapter | None] = field(default_factory=dict)
    frontends: dict[int, FrontendRecord | None] = field(default_factory=dict)
    models: dict[str, ModelRecord | None] = field(default_factory=dict)
    spec: SealedSpec | None = None

    def __bool__(self) -> bool:
        told = self.records or self.met or self.adapters or self.frontends or self.models or self.spec
        return bool(told)
