"""One request on its way through a simulated deployment, and what became of it. Times are virtual seconds."""

from __future__ import annotations

from array import array

from disagg.coordinator.request import Request
from disagg.coordinator.wishes import Wishes
from disagg.errors import Overloaded
from disagg.plane.ledger import Grant
from disagg.replay.virtual.prefix_cache import Node
from disagg.routing.endpoints import RankId
from disagg.routing.reservation import Reservation

NEVER = -1.0


class Served:
    """`max_tokens`: what the client allows; `output_tokens`: what comes, which nobody knows before. `owner`: whose it
    is, for fairness. `refusal`: admission's, and then it ends at once: no first token ever comes."""

    __slots__ = (
        "admitted_s",
        "cached_tokens",
        "decode_held",
        "decode_on",
        "due_s",
        "ended_s",
        "first_chunk_s",
        "first_s",
        "frontend",
        "grants",
        "max_tokens",
        "node",
        "number",
        "output_tokens",
        "own_tokens",
        "owner",
        "path",
        "prompt_tokens",
        "read_on",
        "read_s",
        "read_tokens",
        "refusal",
        "request",
        "reservation",
        "sent_tokens",
        "session",
        "stood_s",
        "wishes",
    )

    def __init__(
        self,
        number: int,
        due_s: float,
        prompt_tokens: int,
        output_tokens: int,
        max_tokens: int,
        path: array[int],
        session: str,
    ) -> None:
        self.number, self.due_s, self.path, self.session = number, due_s, path, session
        self.prompt_tokens, self.output_tokens, self.max_tokens = prompt_tokens, output_tokens, max_tokens
        self.owner, self.wishes = b"", Wishes(session=session)
        self.refusal: Overloaded | None = None
        self.reservation: Reservation | None = None
        self.grants: dict[str, Grant] = {}  # by the life of the host that gave it
        self.request: Request | None = None  # as its frontend knows it
        self.read_on: RankId | None = None  # None: on an aggregated rank
        self.decode_on: RankId | None = None
        self.frontend = 0  # its number
        self.admitted_s = self.first_chunk_s = self.read_s = self.first_s = self.ended_s = NEVER
        self.stood_s = 0.0  # on an aggregated rank: its `busy.read_s` at the first token; at the end, what came since
        # where its prompt is read
        self.node: Node | None = None
        self.cached_tokens = self.read_tokens = self.sent_tokens = self.own_tokens = 0
        self.decode_held = 0
