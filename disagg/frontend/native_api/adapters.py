"""POST /load_lora_adapter and /unload_lora_adapter: SGLang's bodies and answers, for all engines of the deployment.

Way:   app.py -> [AdapterRoutes] -> Backend -> controller -> every engine
Out:   200 once the name is listed, or gone; else SGLang's `error_message` beside the error object that all have here
Fails: BadRequest: 400 for a body that is wrong, 409 where an engine, or the deployment, does not take the change
"""

from __future__ import annotations

from typing import Any

import msgspec

from disagg.errors import BadRequest, RequestError
from disagg.fields import Body, boolean, refuse, required, typed
from disagg.frontend.backend import Backend
from disagg.frontend.body import SMALL_BYTES_MAX, check_encoding, decode_body
from disagg.frontend.exchange import Exchange
from disagg.frontend.keys import Caller
from disagg.frontend.responses import encode, error_body

LOAD = frozenset({"lora_name", "lora_path", "pinned"})
UNLOAD = frozenset({"lora_name"})
UNREAD = frozenset({"lora_id", "rid", "http_worker_ipc"})  # SGLang's own, which its clients may send as null


class AdapterRoutes:
    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def load(self, exchange: Exchange, _: str, caller: Caller) -> None:
        body = await _body(exchange, LOAD)
        name, path = (typed(str, required(body, field), field) for field in ("lora_name", "lora_path"))
        await self._answer(exchange, await self._backend.load_adapter(name, path, boolean(body, "pinned")))

    async def unload(self, exchange: Exchange, _: str, caller: Caller) -> None:
        body = await _body(exchange, UNLOAD)
        name = typed(str, required(body, "lora_name"), "lora_name")
        await self._answer(exchange, await self._backend.unload_adapter(name))

    async def _answer(self, exchange: Exchange, why_not: str | None) -> None:
        if why_not is not None:
            raise BadRequest("lora_name", "adapter_not_changed", why_not, http_status=409)
        there = {name: adapter.path for name, adapter in self._backend.adapters.items()}
        await exchange.answer(200, encode({"success": True, "error_message": None, "loaded_adapters": there}))


def adapter_error(error: RequestError) -> bytes:
    said: dict[str, Any] = msgspec.json.decode(error_body(error))
    return encode({"success": False, "error_message": error.message, **said})


async def _body(exchange: Exchange, known: frozenset[str]) -> Body:
    check_encoding(exchange)
    body = decode_body(await exchange.call.body(SMALL_BYTES_MAX))
    for name, value in body.items():
        if name not in known and not (name in UNREAD and value is None):
            refuse(name[:100], "unknown_parameter", f"'{name[:100]}' is not a parameter of this endpoint")
    return {name: value for name, value in body.items() if value is not None}
