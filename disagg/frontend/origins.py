"""Which web pages may read answers: CORS, for the paths of clients alone.

Way:   request's head -> [Origins.mark] -> every answer of /v1, errors and streams too; OPTIONS -> [Origins.preflight]
In:    `frontend.cors`; the Origin a browser sends with what a page asks of another origin
Out:   headers by which the browser lets the page read. Paths of operators never have them
Fails: BadRequest with status 403 for a preflight of an origin that is not allowed

A preflight is answered before keys are asked for: browsers send none with it.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from disagg.errors import BadRequest
from disagg.frontend.exchange import Exchange

ANY = "*"
MAX_AGE_S = 600
EXPOSED = b"x-request-id, retry-after, x-disagg-simulated"
_NAMES = re.compile(rb"[\w!#$%&'*+.^`|~-]+(?:[ \t]*,[ \t]*[\w!#$%&'*+.^`|~-]+)*", re.ASCII)
_NAMES_BYTES_MAX = 2048


class Origins:
    """None: no page may. `*`: all may, which suits a server without keys on one's own machine."""

    def __init__(self, origins: Collection[str] = (), max_age_s: int = MAX_AGE_S) -> None:
        self._allowed = frozenset(each.encode() for each in origins)
        self._any = ANY in origins
        self._max_age_s = max_age_s

    def mark(self, exchange: Exchange) -> None:
        if not self._allowed:
            return
        origin = exchange.request_header(b"origin")
        if not self._any or origin is not None:
            exchange.answer_headers.append((b"vary", b"Origin"))  # a cache must not give one origin's answer to another
        if origin is not None and self._allows(origin):
            allowed = b"*" if self._any else origin
            exchange.answer_headers += [
                (b"access-control-allow-origin", allowed),
                (b"access-control-expose-headers", EXPOSED),
            ]

    def preflight(self, exchange: Exchange, methods: bytes) -> None:
        """Adds what permits the request that is to follow. A plain OPTIONS learns the methods alone."""
        exchange.answer_headers.append((b"allow", methods))
        origin = exchange.request_header(b"origin")
        if origin is None or exchange.request_header(b"access-control-request-method") is None:
            return
        if not self._allows(origin):
            shown = origin[:100].decode("latin-1")
            what = f"pages of '{shown}' may not use this; its operator can add it to frontend.cors.origins"
            raise BadRequest(None, "origin_not_allowed", what, http_status=403)
        exchange.answer_headers += [
            (b"access-control-allow-methods", methods),
            (b"access-control-max-age", str(self._max_age_s).encode()),
        ]
        names = exchange.request_header(b"access-control-request-headers") or b""
        if len(names) <= _NAMES_BYTES_MAX and _NAMES.fullmatch(names):
            exchange.answer_headers.append((b"access-control-allow-headers", names))
        if not self._any and exchange.request_header(b"access-control-request-private-network") == b"true":
            exchange.answer_headers.append((b"access-control-allow-private-network", b"true"))

    def _allows(self, origin: bytes) -> bool:
        return self._any or origin in self._allowed
