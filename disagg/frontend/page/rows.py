"""Engines and requests as the page lists them.

Way:   registry's records, endpoints, requests -> [rows] -> Feed
Out:   plain data, and of a request nothing that its client wrote but the id it gave
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any, TypeVar

from disagg.coordinator.remembered import Remembered
from disagg.coordinator.request import Request
from disagg.registry.records import EngineRecord

SHOWN = 20  # requests in a list
SEARCHED = 1000  # for those that a caller may see
CLIENT_ID_CHARACTERS = 100

R = TypeVar("R", Request, Remembered)


def engine_row(record: EngineRecord) -> dict[str, Any]:
    return {
        "id": record.id,
        "role": record.role,
        "group": record.group,
        "state": record.state,
        "incarnation": record.incarnation,
        "nodes": [member.node for member in record.members] or [record.node],
        "ranks": record.ranks,
        "since_s": record.since_s,
        "restarts": record.restarts,
        "detail": record.detail,
        "lane": record.lane,
        "kv_tokens": record.kv_tokens,  # of a rank; 0: not known
    }


def live_rows(live: Iterable[Request], owner: bytes | None, now_s: float) -> list[dict[str, Any]]:
    """Those that have run longest. `owner`: whose; None: of all."""
    return [
        {
            "id": request.id,
            "client_id": _client_id(request),
            "phase": request.phase.name.lower(),
            "age_s": round(now_s - request.received_at_s, 2),
            "in_phase_s": round(now_s - request.phase_since_s, 2),
            "prompt_tokens": len(request.prompt_ids),
            "tokens": len(request.emitted_ids),
            "tries": request.tries,
            **request.facts.places,
        }
        for request in _of(owner, live)
    ]


def ended_rows(newest_first: Iterable[Remembered], owner: bytes | None, now_s: float) -> list[dict[str, Any]]:
    return [
        {
            "id": request.id,
            "client_id": _client_id(request),
            "phase": request.phase.name.lower(),
            "age_s": round(ended_s - began_s, 3),
            "ago_s": round(now_s - ended_s, 2),
            "ttft_s": round(request.timeline["first_token"] - began_s, 3)
            if "first_token" in request.timeline
            else None,
            "prompt_tokens": request.prompt_tokens,
            "tokens": request.output_tokens,
            "tries": request.tries,
            "error": request.facts.error.message if request.facts.error else None,
            **request.facts.places,
        }
        for request in _of(owner, newest_first)
        for began_s in [request.received_at_s]
        for ended_s in [max(request.timeline.values(), default=began_s)]
    ]


def longest(lists: Iterable[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Of several frontends' lists of live requests."""
    return sorted((row for each in lists for row in each), key=lambda row: -row["age_s"])[:SHOWN]


def newest(lists: Iterable[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Of several frontends' lists of requests that ended."""
    return sorted((row for each in lists for row in each), key=lambda row: row["ago_s"])[:SHOWN]


def _of(owner: bytes | None, requests: Iterable[R]) -> Iterable[R]:
    """As in a status: without a key nobody owns anything."""
    seen = islice(requests, SEARCHED) if owner is not None else requests
    return islice((each for each in seen if owner is None or (owner and each.owner == owner)), SHOWN)


def _client_id(request: Request | Remembered) -> str | None:
    said = request.facts.client_request_id
    return said[:CLIENT_ID_CHARACTERS] if said else None
