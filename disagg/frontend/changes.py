"""POST /disagg/changes and GET /disagg/revisions: what an operator orders of the whole deployment, and how it goes.

Way:   `disagg scale`, `apply`, `restart`, `role`, `rollback`, `stop` -> [ChangeRoutes] -> Whole -> controller
In:    {"order": {"do": "scale", "counts": {"prefill": 3}}, "yes": true}; the orders are in disagg/registry/orders.py
Out:   200 with an Answer: it is begun (`change`), or there is nothing to do, or with `dry_run` what it would do
Fails: BadRequest: 400 for an order that is none, 403 for a configuration of another user's, 409 where the controller
       refuses it, or asks before it does it
"""

from __future__ import annotations

import asyncio

import msgspec

from disagg.errors import BadRequest
from disagg.frontend.body import check_encoding
from disagg.frontend.exchange import Exchange
from disagg.frontend.here import OR_ADMIN
from disagg.frontend.keys import Caller, Keys
from disagg.frontend.peer_user import is_own_users
from disagg.frontend.whole import Whole
from disagg.registry.orders import CONFIG_BYTES_MAX, Apply, Asked

BODY_BYTES_MAX = 2 * CONFIG_BYTES_MAX  # as JSON it is longer
NUMBER_DIGITS = 9

_decode = msgspec.json.Decoder(Asked).decode


class ChangeRoutes:
    def __init__(self, whole: Whole, keys: Keys) -> None:
        self._whole, self._keys = whole, keys

    async def order(self, exchange: Exchange, _: str, caller: Caller) -> None:
        check_encoding(exchange)
        try:
            asked = _decode(await exchange.call.body(BODY_BYTES_MAX))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise BadRequest("order", "invalid_order", f"this is no order: {error}") from None
        exchange.action = "" if asked.dry_run else str(asked.order)
        if isinstance(asked.order, Apply) and not self._keys.has_admins:
            await self._refuse_other_users(exchange)
        answer = await self._whole.change(asked)
        if answer.why_not:
            raise BadRequest("order", "order_refused", answer.why_not, http_status=409)
        if answer.question and not asked.dry_run:
            raise BadRequest("yes", "order_asks", f"{answer.question}; say yes", http_status=409)
        await exchange.answer(200, msgspec.json.encode(answer))

    async def _refuse_other_users(self, exchange: Exchange) -> None:
        """A configuration says which variables engines get, and so what they run. Other users of this machine may
        operate a deployment without admin keys, but not that."""
        ends = exchange.call.ends
        if ends is None or not await asyncio.to_thread(is_own_users, *ends):
            what = "a configuration says what engines run: without security.admin_keys only the user may apply one"
            raise BadRequest(None, "forbidden", f"{what} whose deployment it is; {OR_ADMIN}", http_status=403)

    async def look(self, exchange: Exchange, _: str, caller: Caller) -> None:
        show = exchange.query("show") or "0"
        if not show.isdecimal() or len(show) > NUMBER_DIGITS:
            raise BadRequest("show", "invalid_value", "'show' must be the number of a revision")
        await exchange.answer(200, msgspec.json.encode(await self._whole.changes(int(show))))
