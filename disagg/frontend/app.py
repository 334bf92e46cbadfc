"""The routes of a frontend.

Way:   HttpServer -> [Frontend] -> Generations, or an answer from what the backend knows
In:    ASGI calls
Out:   OpenAI's API, health for load balancers, metrics for Prometheus, /disagg/* for operators
Fails: every refusal is an OpenAI error object, also for a path nobody serves
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from disagg.errors import BadRequest, NoReadyPair, RequestError
from disagg.frontend.answers import encode, model_body
from disagg.frontend.backend import Backend
from disagg.frontend.exchange import ClientGone, Exchange, Header
from disagg.frontend.generation import Generations
from disagg.frontend.keys import Keys
from disagg.frontend.server import HttpServer, Message
from disagg.frontend.tokenizer import Codec

BODY_LIMIT_BYTES = 8 * 2**20
WRITE_LIMIT_S = 60.0  # a client that takes nothing for so long is gone
LOG_LINES, LOG_LINES_MAX = 100, 10_000
PROMETHEUS = b"text/plain; version=0.0.4; charset=utf-8"
TEXT = b"text/plain; charset=utf-8"

Handler = Callable[[Exchange, str], Awaitable[None]]


class Frontend:
    def __init__(
        self,
        backend: Backend,
        codec: Codec,
        *,
        body_limit_bytes: int = BODY_LIMIT_BYTES,
        write_limit_s: float = WRITE_LIMIT_S,
        headers: Sequence[Header] = (),
        keys: Keys = Keys(()),
    ) -> None:
        """`headers` go with every response."""
        self._keys = keys
        self._backend, self._write_limit_s, self._headers = backend, write_limit_s, headers
        self._generations = Generations(backend, codec, body_limit_bytes)
        self._server = HttpServer(self)
        self._exact: dict[str, tuple[str, Handler]] = {
            "/v1/chat/completions": ("POST", self._chat),
            "/v1/completions": ("POST", self._completion),
            "/v1/models": ("GET", self._models),
            "/health": ("GET", self._health),
            "/ready": ("GET", self._ready),
            "/metrics": ("GET", self._metrics),
            "/disagg/status": ("GET", self._status),
            "/disagg/loads": ("GET", self._loads),
        }
        self._with_a_name: dict[str, tuple[str, Handler]] = {  # the rest of the path is the name
            "/v1/models/": ("GET", self._model),
            "/v1/requests/": ("DELETE", self._cancel),
            "/disagg/requests/": ("GET", self._timeline),
            "/disagg/logs/": ("GET", self._engine_log),
            "/disagg/engines/": ("POST", self._drain),
        }

    async def start(self, host: str, port: int, *, reuse_port: bool = False) -> None:
        await self._server.start(host, port, reuse_port=reuse_port)

    async def stop(self, limit_s: float) -> None:
        """Running requests may end within the limit; then they are cancelled."""
        await self._server.stop(limit_s)

    @property
    def port(self) -> int:
        return self._server.port

    async def __call__(
        self,
        scope: Message,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        exchange = Exchange(scope, receive, send, self._write_limit_s)
        exchange.answer_headers += self._headers
        try:
            self._keys.check(exchange)
            handler, name = self._route(exchange)
            await handler(exchange, name)
        except ClientGone:
            await exchange.give_up()
        except RequestError as error:
            await exchange.answer_error(error)
        except asyncio.CancelledError:  # by HttpServer.stop alone, which waits for what is said here
            await exchange.fail(NoReadyPair("frontend", "this server stops", "try again"))

    def _route(self, exchange: Exchange) -> tuple[Handler, str]:
        path, name = exchange.path, ""
        found = self._exact.get(path)
        if found is None:
            prefix = next((each for each in self._with_a_name if path.startswith(each) and path != each), None)
            if prefix is None:
                raise BadRequest(None, "unknown_url", f"there is no {path[:100]} here", http_status=404)
            found, name = self._with_a_name[prefix], path.removeprefix(prefix)
        method, handler = found
        if exchange.method != method:
            exchange.answer_headers.append((b"allow", method.encode()))
            what = f"{exchange.method} is not for {path[:100]}; use {method}"
            raise BadRequest(None, "method_not_allowed", what, http_status=405)
        return handler, name

    async def _chat(self, exchange: Exchange, _: str) -> None:
        await self._generations.answer(exchange, "chat")

    async def _completion(self, exchange: Exchange, _: str) -> None:
        await self._generations.answer(exchange, "text")

    async def _models(self, exchange: Exchange, _: str) -> None:
        await _json(exchange, {"object": "list", "data": [self._model_body()]})

    async def _model(self, exchange: Exchange, name: str) -> None:
        if name != self._backend.model_name:
            what = f"there is no model '{name[:100]}' here; this is '{self._backend.model_name}'"
            raise BadRequest("model", "model_not_found", what, http_status=404)
        await _json(exchange, self._model_body())

    async def _health(self, exchange: Exchange, _: str) -> None:
        await _json(exchange, {"status": "alive"})

    async def _ready(self, exchange: Exchange, _: str) -> None:
        is_ready, why_not = self._backend.ready()
        if not is_ready:
            raise NoReadyPair("frontend", why_not)
        await _json(exchange, {"status": "ready"})

    async def _metrics(self, exchange: Exchange, _: str) -> None:
        await exchange.answer(200, self._backend.metrics(), PROMETHEUS)

    async def _status(self, exchange: Exchange, _: str) -> None:
        await _json(exchange, self._backend.status())

    async def _loads(self, exchange: Exchange, _: str) -> None:
        await _json(exchange, await self._backend.loads())

    async def _timeline(self, exchange: Exchange, name: str) -> None:
        timeline = self._backend.timeline(_request_id(name))
        if timeline is None:
            raise _no_such_request(name)
        await _json(exchange, timeline)

    async def _engine_log(self, exchange: Exchange, name: str) -> None:
        text = await self._backend.engine_log(name, _line_count(exchange.query("lines")))
        if text is None:
            raise BadRequest("engine", "engine_not_found", f"there is no engine '{name[:100]}' here", http_status=404)
        await exchange.answer(200, text.encode(errors="replace"), TEXT)

    async def _drain(self, exchange: Exchange, name: str) -> None:
        """POST /disagg/engines/ENGINE/drain[?restart=1]"""
        engine_id, _, action = name.rpartition("/")
        if action != "drain" or not engine_id:
            raise BadRequest(None, "unknown_url", f"there is no {exchange.path[:100]} here", http_status=404)
        if not exchange.is_from_this_machine:
            what = "engines are drained from the frontend's own machine only"
            raise BadRequest(None, "forbidden", what, http_status=403)
        why_not = await self._backend.drain(engine_id, restart=exchange.query("restart") == "1")
        if why_not is not None:
            raise BadRequest("engine", "cannot_drain", why_not, http_status=409)
        await _json(exchange, {"id": engine_id, "draining": True})

    async def _cancel(self, exchange: Exchange, name: str) -> None:
        request_id = _request_id(name)
        if not self._backend.cancel(request_id):
            raise _no_such_request(name)
        await _json(exchange, {"id": request_id, "cancelled": True})

    def _model_body(self) -> dict[str, Any]:
        backend = self._backend
        return model_body(backend.model_name, backend.created_s, backend.context_length)


async def _json(exchange: Exchange, content: dict[str, Any]) -> None:
    await exchange.answer(200, encode(content))


def _request_id(name: str) -> str:
    """Clients see the id in `x-request-id`, and with OpenAI's prefix in answers: both find the request."""
    return name.removeprefix("chatcmpl-").removeprefix("cmpl-")


def _no_such_request(name: str) -> BadRequest:
    what = f"there is no request '{name[:100]}' here: it never was, or it ended long ago"
    return BadRequest("id", "request_not_found", what, http_status=404)


def _line_count(text: str | None) -> int:
    if text is None:
        return LOG_LINES
    if not text.isdecimal() or not 1 <= int(text[:10]) <= LOG_LINES_MAX:
        raise BadRequest("lines", "invalid_value", f"'lines' must be a number from 1 to {LOG_LINES_MAX}")
    return int(text)
