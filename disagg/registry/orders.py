"""What an operator may order of a deployment that serves, and what the controller says of it.

Way:   `disagg scale`, `apply`, … =JSON=> a frontend -> ControlClient =msgpack=> controller (disagg/cluster/change/)
In:    an Asked; out: an Answer at once, and afterwards a Status, as often as somebody looks
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from disagg.roles import Role
from disagg.visible import one_line

CONFIG_BYTES_MAX = 1 << 20  # as of a file (disagg/config/yaml_text.py)


class _OfOrders(msgspec.Struct, frozen=True, tag_field="do", forbid_unknown_fields=True):
    pass


class Scale(_OfOrders, frozen=True, tag="scale"):
    counts: dict[str, int]  # engines of a role: prefill; of one of several models chat.prefill

    def __str__(self) -> str:
        return " ".join(["scale", *(f"{role}={count}" for role, count in self.counts.items())])


class Apply(_OfOrders, frozen=True, tag="apply"):
    config: str  # YAML, whole: nothing of the machine where the command runs is needed. Without secrets
    source: str = ""  # what the operator calls it

    def __str__(self) -> str:
        return f"apply {one_line(self.source) or 'a configuration'}"


class Restart(_OfOrders, frozen=True, tag="restart"):
    of: tuple[str, ...] = ()  # roles, models and engines; none: all engines

    def __str__(self) -> str:
        return " ".join(["restart --rolling", *self.of])


class ChangeRole(_OfOrders, frozen=True, tag="role"):
    engine_id: str
    role: Role

    def __str__(self) -> str:
        return f"role {self.engine_id} {self.role}"


class Rollback(_OfOrders, frozen=True, tag="rollback"):
    to: int | None = None  # a revision; None: the one before this

    def __str__(self) -> str:
        return "rollback" + (f" --to {self.to}" if self.to is not None else "")


class Stop(_OfOrders, frozen=True, tag="stop"):
    def __str__(self) -> str:
        return "stop"


Order = Scale | Apply | Restart | ChangeRole | Rollback | Stop


class Asked(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    order: Order
    yes: bool = False  # whatever would be asked
    agreed: str = ""  # the question to which somebody has said yes: to this one, and no other
    dry_run: bool = False  # tell what would be done, and do nothing


class Answer(msgspec.Struct, frozen=True):
    """One of: it is refused (`why_not`), it is begun or was (`change`), there is nothing to do. `question`: what has to
    be said yes to before it is begun."""

    why_not: str = ""
    question: str = ""
    change: int = 0
    joined: bool = False  # the same was under way already
    lines: tuple[str, ...] = ()  # what differs, and what follows from it


class Stage(StrEnum):
    RUNNING = "running"
    DONE = "done"
    ROLLED_BACK = "rolled back"  # it did not succeed; all is as it was
    FAILED = "failed"  # it did not succeed, nor could all be made as it was


class Progress(msgspec.Struct, frozen=True):
    """Of one change."""

    number: int
    what: str
    stage: Stage
    began_s: float  # wall clock
    lines: tuple[str, ...] = ()
    why: str = ""  # it did not succeed
    dropped: int = 0  # lines that came before these, and are kept no longer


class Revision(msgspec.Struct, frozen=True):
    """A state that was wanted."""

    number: int
    at_s: float  # wall clock
    what: str
    config: str = ""  # YAML, without secrets; empty where it was not asked for


class Status(msgspec.Struct, frozen=True):
    change: Progress | None = None  # the one under way, or the last one
    revisions: tuple[Revision, ...] = ()  # the last is what is wanted now
    earlier: tuple[Progress, ...] = ()  # some changes before it, the oldest first


NO_CONTROLLER = Answer(why_not="there is no controller")
