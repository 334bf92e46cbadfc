"""What this frontend alone knows: its requests by their ids, the conversations it keeps, its counts.

Way:   together.py, or another frontend (peers.py) -> [OwnRequests] -> Whole, Generations, kept conversations
Out:   None for a request that never was, ended long ago, or came with another key
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from disagg.frontend.keys import Caller
from disagg.frontend.models import Model
from disagg.frontend.page.others import Part
from disagg.frontend.peers import OwnStatus
from disagg.frontend.responses_api import ResponseStore
from disagg.frontend.whole import Whole
from disagg.lives import life_of
from disagg.telemetry.metrics import Figures


class OwnRequests:
    def __init__(self, whole: Whole, models: Sequence[Model], kept: ResponseStore) -> None:
        """`models`: all that are here; they come and go."""
        self._backend, self._models, self._kept = whole, models, kept

    def timeline(self, request_id: str, caller: Caller) -> dict[str, Any] | None:
        return self._backend.timeline(request_id) if self._is_for(request_id, caller) else None

    def cancel(self, request_id: str, caller: Caller) -> bool | None:
        """False: it has ended."""
        if not self._is_for(request_id, caller):
            return None
        of_it = (model for model in self._models if model.backend.owner_of(request_id) is not None)
        return next(of_it).generations.cancel(request_id)

    def conversation(self, response_id: str, owner: bytes) -> list[dict[str, Any]] | None:
        return self._kept.find(owner, response_id)

    def status(self, owner: bytes | None) -> OwnStatus:
        status = self._backend.status(owner)
        in_flight = {life_of(each["id"], each["incarnation"]): each["in_flight_by_rank"] for each in status["engines"]}
        return OwnStatus(status["frontend"], in_flight)

    def figures(self) -> Figures:
        return self._backend.figures()

    def part(self, owners: Sequence[bytes | None]) -> Part:
        return self._backend.feed.part(owners)

    def _is_for(self, request_id: str, caller: Caller) -> bool:
        owner = self._backend.owner_of(request_id)
        return owner is not None and (caller.sees_all or owner == caller.owner)
