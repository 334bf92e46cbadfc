"""What a policy is told of a request, and what it answers.

Way:   a Request that waits -> admission -> [RoutingView] -> policy -> [Choice] -> Reservation
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence, Set

import msgspec

from disagg.plane.ledger import tokens_to_set_aside
from disagg.role_table import ROLES
from disagg.roles import Role
from disagg.routing.endpoints import Pair, RankId


class RoutingView(msgspec.Struct, frozen=True, kw_only=True):
    """One try of one request, as routing sees it. Times in seconds of this process's monotonic clock.

    `prompt_ids` and `emitted_ids` (tokens so far, of a request that migrates) are the request's own: to be read,
    never to be changed or kept.
    """

    prompt_tokens: int  # to be prefilled: the prompt, and what has been put out so far
    new_tokens: int  # the most that may still be put out
    prompt_ids: Sequence[int] = ()
    emitted_ids: Sequence[int] = ()
    deadline_s: float = float("inf")
    path: array[int] = msgspec.field(default_factory=lambda: array("Q"))  # its KV blocks' keys; empty: nobody asks
    expected_tokens: int = 0  # still to come, as the client says, `new_tokens` at the most; 0: it does not say
    priority: int = 0
    hurries: bool = False  # to where it is read soonest, whatever that costs others: elsewhere it would be too late
    session: str = ""
    model: str = ""
    # KV of the same tokens is another one for each adapter and salt: what a rank has read counts for these alone.
    adapter: str = ""
    salt: str = ""
    prefix_on: RankId | None = None  # the rank that has just read the same prompt
    avoid: Set[str] = frozenset()  # engine lives to take only where nothing else has room
    alone_on: Set[Role] = frozenset()  # of these roles only engines on which nothing runs
    embeds: bool = False  # it wants a vector: only engines that make some may take it, and those take nothing else

    @property
    def token_ids(self) -> list[int]:
        """All that is to be prefilled; a copy, which takes its time on a long prompt."""
        return [*self.prompt_ids, *self.emitted_ids]

    def tokens_on(self, role: Role) -> int:
        """To be set aside on an endpoint of this role, before they are rounded up to its pages."""
        return tokens_to_set_aside(self.prompt_tokens, ROLES[role].new_tokens(self.new_tokens))


class Reason(msgspec.Struct, frozen=True, tag=True):
    """Why a pair was chosen: kept as the request's `Facts.routed`, with the class's name as its `type`. A policy
    adds what it went by as fields of a subclass."""


class Forecast(Reason, frozen=True):
    """The reason of a policy that foresees how long things take, in milliseconds."""

    wait_ms: float  # until the prompt's turn
    read_ms: float
    transfer_ms: float
    itl_ms: float

    @property
    def ttft_s(self) -> float:
        return (self.wait_ms + self.read_ms + self.transfer_ms) / 1e3

    @property
    def itl_s(self) -> float:
        return self.itl_ms / 1e3


class Choice(msgspec.Struct, frozen=True):
    pair: Pair
    reason: Reason
    cached_tokens: int = 0  # of the prompt, which the pair's reader is believed to have
