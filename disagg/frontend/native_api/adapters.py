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
from disagg.frontend.body import SMALL_BYTES_MAX, check_encoding, decode_body
from disagg.frontend.exchange import Exchange
from disagg.frontend.keys import Caller
from disagg.frontend.models import Model, Models
from disagg.frontend.responses import encode, error_body

LOAD = frozenset({"lora_name", "lora_path", "pinned", "model"})
UNLOAD = frozenset({"lora_name", "model"})
UNREAD = frozenset({"lora_id", "rid", "http_worker_ipc"})  # SGLang's own, which its clients may send as null


class AdapterRoutes:
    """`model` in a body says of which of several it is to be; with one it may be left out, as SGLang's clients do."""

    def __init__(self, models: Models) -> None:
        self._models = models

    async def load(self, exchange: Exchange, _: str, caller: Caller) -> None:
        body = await _body(exchange, LOAD)
        name, path = (typed(str, required(body, field), field) for field in ("lora_name", "lora_path"))
        model = self._of(body)
        exchange.action = f"load adapter {name} from {path}"
        await self._answer(exchange, model, await model.backend.load_adapter(name, path, boolean(body, "pinned")))

    async def unload(self, exchange: Exchange, _: str, caller: Caller) -> None:
        body = await _body(exchange, UNLOAD)
        name = typed(str, required(body, "lora_name"), "lora_name")
        model = self._of(body)
        exchange.action = f"unload adapter {name}"
        await self._answer(exchange, model, await model.backend.unload_adapter(name))

    def _of(self, body: Body) -> Model:
        return self._models.said(typed(str, body["model"], "model") if "model" in body else None)

    async def _answer(self, exchange: Exchange, model: Model, why_not: str | None) -> None:
        if why_not is not None:
            raise BadRequest("lora_name", "adapter_not_changed", why_not, http_status=409)
        there = {name: adapter.path for name, adapter in model.backend.adapters.items()}
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
