"""What every answer begins with: its request's name, the look at its head, and the word on fields that were left out.

Way:   Exchange -> [name, check_head] -> the body's reader -> [tell_ignored] -> engines
Fails: BadRequest for a header that is not for clients, and for an encoding that is not read here
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from disagg.frontend.backend import Backend
from disagg.frontend.body import check_encoding
from disagg.frontend.exchange import Exchange
from disagg.frontend.parameters import check_headers
from disagg.frontend.unknown_fields import HEADER, header_of

# What our answers put before a request's id.
ID_PREFIXES = ("chatcmpl-", "cmpl-", "resp_", "msg_", "classify-")


def name(exchange: Exchange, backend: Backend) -> float:
    """Gives the request its id, if it has none, which its client is told; returns when it came (monotonic)."""
    if not exchange.request_id:
        exchange.request_id, exchange.received_at_s = backend.new_request_id(), time.monotonic()
        exchange.answer_headers.append((b"x-request-id", exchange.request_id.encode()))
    return exchange.received_at_s


def bare_id(told: str) -> str:
    """Of a request, named as in `x-request-id` or as in an answer."""
    for prefix in ID_PREFIXES:
        told = told.removeprefix(prefix)
    return told


def check_head(exchange: Exchange) -> None:
    check_headers(exchange.request_headers)
    check_encoding(exchange)


def tell_ignored(exchange: Exchange, ignored: Sequence[str]) -> None:
    if ignored:
        exchange.answer_headers.append((HEADER, header_of(ignored)))
