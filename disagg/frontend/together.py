"""What all frontends of a deployment know together. Any of them is asked: they share a port.

Way:   app.py, native_api -> [Together] -> own.py, or the frontend whose request it is (peers.py)
Fails: a frontend that does not answer counts as one that knows nothing; the status says that it is silent
"""

from __future__ import annotations

from typing import Any

from disagg.errors import BadRequest
from disagg.frontend.keys import Caller
from disagg.frontend.own import OwnRequests
from disagg.frontend.peers import Peers
from disagg.frontend.receiving import bare_id
from disagg.frontend.whole import Whole
from disagg.lives import life_of


class Together:
    """`peers`: None where there is one frontend alone. Requests are named as in `x-request-id`, or with the prefix of
    their API."""

    def __init__(self, backend: Whole, own: OwnRequests, peers: Peers | None) -> None:
        self._backend, self._own, self._peers = backend, own, peers

    async def timeline(self, name: str, caller: Caller) -> dict[str, Any]:
        """Raises BadRequest where there is no such request for this caller."""
        request_id = bare_id(name)
        if self._peers is None or (number := self._peers.of(request_id)) is None:
            found = self._own.timeline(request_id, caller)
        else:
            found = await self._peers.timeline(number, request_id, caller)
        if found is None:
            raise no_such_request(name)
        return found

    async def cancel(self, name: str, caller: Caller) -> bool:
        """Whether it ran, and was this caller's."""
        request_id = bare_id(name)
        if self._peers is None or (number := self._peers.of(request_id)) is None:
            return bool(self._own.cancel(request_id, caller))
        return bool(await self._peers.cancel(number, request_id, caller))

    async def status(self, owner: bytes | None) -> dict[str, Any]:
        """`frontends`, where there are several: each one's own part; requests of engines are all frontends'."""
        status = self._backend.status(owner)
        if self._peers is None:
            return status
        others = await self._peers.statuses(owner)
        parts = {number: {"silent": True} if other is None else other.frontend for number, other in others.items()}
        parts[self._peers.number] = status["frontend"]
        for engine in status["engines"]:
            life = life_of(engine["id"], engine["incarnation"])
            of_all = [engine["in_flight_by_rank"], *(each.in_flight.get(life, []) for each in others.values() if each)]
            engine["in_flight_by_rank"] = _added(of_all)
            engine["in_flight"] = sum(engine["in_flight_by_rank"])
        return {**status, "frontends": [{"number": number, **parts[number]} for number in sorted(parts)]}

    async def metrics(self) -> bytes:
        """Counts of all frontends together."""
        return self._backend.metrics(() if self._peers is None else await self._peers.figures())


def no_such_request(name: str) -> BadRequest:
    what = f"there is no request '{name[:100]}' here: it never was, ended long ago, or came with another key"
    return BadRequest("id", "request_not_found", what, http_status=404)


def _added(lists: list[list[int]]) -> list[int]:
    """Rank by rank; a frontend that does not know an engine yet has none."""
    ranks = max(map(len, lists))
    return [sum(each[rank] for each in lists if rank < len(each)) for rank in range(ranks)]
