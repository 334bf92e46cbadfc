"""What chooses the engines of a request: its interface, and how `routing.policy` names one.

Way:   Router.consider -> [Policy.choose] -> a Choice, or None while nothing has room
In:    a RoutingView of the request, and the Endpoints in order of load
Out:   the pair and a Reason, which is kept among the request's facts
Fails: StartError where `routing.policy` names none

To add a policy: one class with `choose`, in a file of any name that can be imported. Ours are in policies/, each with
its formula; its `SHIPPED` has their short names.
"""

from __future__ import annotations

import importlib
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from disagg.errors import StartError
from disagg.policy_names import SHIPPED
from disagg.role_table import ROLES
from disagg.roles import Role
from disagg.routing.cost.prior import Prior
from disagg.routing.load import Endpoints
from disagg.routing.observations import Observation
from disagg.routing.view import Choice, RoutingView

if TYPE_CHECKING:
    from disagg.routing.policies.sides import SidePolicy

SIDES = tuple(role for role in Role if not ROLES[role].embeds)  # a policy may be for one of them alone


class Policy(Protocol):
    """Made once a frontend, without arguments. It is called for each try, in the midst of the event loop: it awaits
    nothing and takes microseconds. What it returns must be free for the request (see Endpoints.is_free_for)."""

    def choose(self, request: RoutingView, endpoints: Endpoints) -> Choice | None: ...


@dataclass(frozen=True)
class Surroundings:
    """What a policy may know of its deployment. `prior`: how long things may take, before anything is measured;
    `now_s`: the clock of all times."""

    random: random.Random = field(default_factory=random.Random)
    prior: Prior = Prior()  # noqa: RUF009 - it is frozen
    now_s: Callable[[], float] = time.monotonic


@runtime_checkable
class Settles(Protocol):
    """A policy that is told of its surroundings once it is made."""

    def settle(self, surroundings: Surroundings) -> None: ...


@runtime_checkable
class Learns(Protocol):
    """A policy that is told what is measured of the engines."""

    def observe(self, observation: Observation) -> None: ...


def load_policy(name: str, surroundings: Surroundings | None = None) -> Policy:
    """The policy of a short name, of an import path (module:Class), or of one a side: `prefill=NAME,decode=NAME`, and
    `aggregated=NAME`; a side that is not named goes by load. Raises StartError."""
    policy: Policy = _by_side(name) if "=" in name else _made(name, "choose")
    if isinstance(policy, Settles):
        policy.settle(surroundings or Surroundings())
    return policy


def _by_side(names: str) -> Policy:
    from disagg.routing.policies.sides import BySide

    sides: dict[str, SidePolicy] = {}
    for word in names.split(","):
        role, _, name = word.strip().partition("=")
        if role not in SIDES or role in sides or not name:
            what = "says that twice" if role in sides else "is no side and its policy"
            would_do = f"say {' or '.join(f'{side}=NAME' for side in SIDES)}, each once, with commas between them"
            raise StartError("routing.policy", f"{word!r} of {names!r} {what}", would_do)
        sides[role] = _side(role, name)
    return BySide(**sides)


def _side(role: str, name: str) -> SidePolicy:
    """The part of a shipped policy that chooses one side, or one's own class that does."""
    from disagg.routing.policies.sides import BySide, LeastOfSide

    if name == "least_loaded":
        return LeastOfSide()
    made = _made(name, "")
    if isinstance(made, BySide):
        return made.of_side[Role(role)]
    if not callable(getattr(made, "pick", None)):
        raise StartError(f"routing.policy.{role}", f"{name} chooses both sides as one", "say routing.policy: " + name)
    side: SidePolicy = made
    return side


def _made(name: str, method: str) -> Any:
    """An instance of the class that a short name or an import path stands for."""
    module, _, attribute = SHIPPED.get(name, name).partition(":")
    would_do = f"say one of {', '.join(SHIPPED)}, or module:Class of one that every frontend can import"
    try:
        policy = getattr(importlib.import_module(module), attribute)()
    except Exception as error:  # whatever somebody else's code raises
        why = str(error) if isinstance(error, ImportError | AttributeError) else repr(error)
        raise StartError("routing.policy", f"{name or 'no name'} cannot be loaded: {why}", would_do) from error
    if method and not callable(getattr(policy, method, None)):
        raise StartError("routing.policy", f"{name} has no method `{method}`", would_do)
    return policy
