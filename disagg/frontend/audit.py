"""What operators and clients did to a deployment, beside asking it: who, what, when, from where, and what came of it.

Way:   app.py, around the handler of an action -> [Audit] -> a line of JSON in the frontend's log, under the name
       `audit`; `disagg events`
In:    an exchange whose key was checked. Who has no right to act is not told here: refusals are counted, so that nobody
       fills the log. Of clients, what they have cancelled is told, and nothing that they only tried
Out:   of who: the name of the key, never the key. What operators did is in the story, too: without requests' ids, as
       where there are no admin keys other clients read it
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from disagg.errors import RequestError
from disagg.frontend.exchange import Exchange
from disagg.frontend.http1 import ClientGone
from disagg.visible import one_line

log = logging.getLogger("audit")

SHOWN_CHARACTERS = 200
DONE = "done"
CLIENT_LEFT = "its client left; it may have been done"
STOPPED = "the frontend stopped; it may have been done"


class Audit:
    """`tell`: (who, what came of it), for the story."""

    def __init__(self, tell: Callable[[str, str], None]) -> None:
        self._tell = tell

    @contextmanager
    def action(self, exchange: Exchange, who: str) -> Iterator[None]:
        """Around the handler, which may say in `exchange.action` what is done; empty: nothing is."""
        result = "it failed"
        try:
            yield
            result = DONE
        except RequestError as error:
            result = error.code
            raise
        except ClientGone:
            result = CLIENT_LEFT
            raise
        except asyncio.CancelledError:
            result = STOPPED
            raise
        finally:
            what = f"{exchange.method} {exchange.path}" if exchange.action is None else exchange.action
            if what:
                what = one_line(what[:SHOWN_CHARACTERS])
                self._write(exchange, who, what, result)
                self._tell(who, what if result == DONE else f"{what} ({result})")

    def cancelled(self, exchange: Exchange, who: str, request_id: str, *, is_operator: bool) -> None:
        self._write(exchange, who, f"cancel {request_id}", DONE)
        if is_operator:
            self._tell(who, "cancel a request")

    def _write(self, exchange: Exchange, who: str, what: str, result: str) -> None:
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        log.info("%s", json.dumps({"at": at, "who": who, "from": exchange.call.client, "what": what, "result": result}))
