"""API keys: who may use /v1.

Way:   request's head -> [Keys.check] -> the handler of the route
In:    `Authorization: Bearer KEY`, as OpenAI's clients send it
Fails: BadRequest with status 401, before the body is read. Keys are compared in constant time, and never shown
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable

from disagg.errors import BadRequest
from disagg.frontend.exchange import Exchange

GUARDED = "/v1/"
_BEARER = b"bearer "


class Keys:
    """None at all: everybody may."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]  # of one length: nothing leaks by time

    def check(self, exchange: Exchange) -> None:
        if not self._digests or not exchange.path.startswith(GUARDED):
            return
        said = exchange.request_header(b"authorization") or b""
        key = said[len(_BEARER) :].strip() if said[: len(_BEARER)].lower() == _BEARER else b""
        digest = hashlib.sha256(key).digest()
        if not any([hmac.compare_digest(digest, known) for known in self._digests]):
            exchange.answer_headers.append((b"www-authenticate", b"Bearer"))
            what = "no valid API key: send `Authorization: Bearer KEY`"
            raise BadRequest(None, "invalid_api_key", what, http_status=401)
