"""The routes of a frontend.

Way:   HttpServer -> [Frontend] -> Generations, or an answer from what the backend knows
In:    HTTP calls
Out:   OpenAI's API, health for load balancers, metrics for Prometheus, /disagg/* for operators
Fails: every refusal is an OpenAI error object, also for a path nobody serves
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

from disagg.adapters import Adapter
from disagg.errors import BadRequest, NoReadyPair, RequestError
from disagg.frontend import messages_api, openapi
from disagg.frontend.audit import Audit
from disagg.frontend.backend import Backend
from disagg.frontend.changes import ChangeRoutes
from disagg.frontend.embeddings import Embeddings
from disagg.frontend.engine_figures import EngineFigures
from disagg.frontend.exchange import Exchange, Header
from disagg.frontend.generation import Generations
from disagg.frontend.http1 import Call, ClientGone, Limits, Refusals
from disagg.frontend.inputs import InputKind
from disagg.frontend.key_limits import NO_LIMITS, Meters
from disagg.frontend.keys import Caller, Keys, Right
from disagg.frontend.models import Model, Models, Seen, by_everybody
from disagg.frontend.native_api.adapters import AdapterRoutes, adapter_error
from disagg.frontend.native_api.routes import NativeRoutes
from disagg.frontend.origins import Origins
from disagg.frontend.own import OwnRequests
from disagg.frontend.page.routes import PageRoutes
from disagg.frontend.peers import Peers
from disagg.frontend.receiving import bare_id
from disagg.frontend.responses import encode
from disagg.frontend.responses_api import ResponseStore
from disagg.frontend.routes import Handler, Route, Routes
from disagg.frontend.server import HttpServer
from disagg.frontend.tls import Tls
from disagg.frontend.together import Together, no_such_request
from disagg.frontend.tokenization import Tokenization, facts_now
from disagg.frontend.whole import Whole
from disagg.logfile import ASKED_LINES_MAX
from disagg.telemetry.traces.tracer import Tracer

BODY_LIMIT_BYTES = 8 * 2**20
LOG_LINES, LOG_LINES_DIGITS = 100, 20
FOR_PAGES = (Right.HEALTH, Right.CLIENT)  # what a page of another origin may be allowed to read
PROMETHEUS = b"text/plain; version=0.0.4; charset=utf-8"
TEXT = b"text/plain; charset=utf-8"
HTML = b"text/html; charset=utf-8"

log = logging.getLogger(__name__)


class Frontend:
    """The HTTP application: checks the key, finds the route, answers with JSON, text or a stream of events.

    `body_limit_bytes`: of a request's body; `headers` go with every response; `peers`: other frontends behind the same
    port. A RequestError becomes an OpenAI error object with the error's `http_status`; nothing is raised to the server.
    """

    def __init__(
        self,
        backend: Backend,
        tokenization: Tokenization,
        *,
        body_limit_bytes: int = BODY_LIMIT_BYTES,
        limits: Limits = Limits(),
        refusals: Refusals | None = None,
        headers: Sequence[Header] = (),
        keys: Keys = Keys(),
        origins: Origins = Origins(),
        peers: Peers | None = None,
        more: Sequence[tuple[Backend, Tokenization]] = (),
        whole: Whole | None = None,
        tracer: Tracer | None = None,
        meters: Meters = NO_LIMITS,
    ) -> None:
        """`more`: models beside the first; then, or where others come later, `whole` speaks for all of them."""
        self._keys, self._origins, self._tracer = keys, origins, tracer
        self._whole, self._headers = whole or backend, headers
        self._audit = Audit(self._whole.feed.acted)
        self._engine_figures = EngineFigures(self._whole)
        self._meters, kept = meters, ResponseStore()
        every, limit = ((backend, tokenization), *more), body_limit_bytes
        self._model = partial(_model, body_limit_bytes=limit, peers=peers, kept=kept, meters=meters)
        models = [self._model(*each) for each in every]
        self._models = Models(models, body_limit_bytes)
        self.own = OwnRequests(self._whole, self._models.here, kept)
        self._together = Together(self._whole, self.own, peers)
        if peers is not None:
            self._whole.feed.look_at(peers.parts)
        native = NativeRoutes(self._models, self._whole, self._cancels, meters)
        adapters, page = AdapterRoutes(self._models), PageRoutes(self._whole.feed, keys)
        changes = ChangeRoutes(self._whole, keys)
        generation, here, vectors = self._generation, self._here, self._vectors
        self._refusals = refusals or Refusals()
        self._server = HttpServer(self, limits, self._refusals)
        self._routes = Routes(
            {
                "/v1/chat/completions": Route("POST", Right.CLIENT, generation("chat")),
                "/v1/completions": Route("POST", Right.CLIENT, generation("text")),
                "/v1/responses": Route("POST", Right.CLIENT, generation("responses")),
                "/v1/messages": Route("POST", Right.CLIENT, generation("messages"), messages_api.error_body),
                "/v1/messages/count_tokens": Route("POST", Right.CLIENT, here("count_tokens"), messages_api.error_body),
                "/generate": Route("POST", Right.CLIENT, generation("generate")),
                "/abort_request": Route("POST", Right.CLIENT, native.abort_request),
                "/health_generate": Route("GET", Right.CLIENT, native.health_generate),
                **dict.fromkeys(("/server_info", "/get_server_info"), Route("GET", Right.CLIENT, native.server_info)),
                **dict.fromkeys(("/model_info", "/get_model_info"), Route("GET", Right.CLIENT, native.model_info)),
                "/load_lora_adapter": Route("POST", Right.OPERATE, adapters.load, adapter_error),
                "/unload_lora_adapter": Route("POST", Right.OPERATE, adapters.unload, adapter_error),
                "/flush_cache": Route("POST", Right.OPERATE, native.flush_cache, also=("GET",)),
                "/version": Route("GET", Right.HEALTH, native.version),
                "/ping": Route("GET", Right.HEALTH, self._health),
                "/v1/models": Route("GET", Right.CLIENT, self._list_models),
                "/v1/tokenize": Route("POST", Right.CLIENT, here("tokenize")),
                "/v1/detokenize": Route("POST", Right.CLIENT, here("detokenize")),
                "/tokenize": Route("POST", Right.CLIENT, here("tokenize")),
                "/detokenize": Route("POST", Right.CLIENT, here("detokenize")),
                "/v1/embeddings": Route("POST", Right.CLIENT, vectors("embd")),
                "/v1/classify": Route("POST", Right.CLIENT, vectors("clas")),
                "/v1/rerank": Route("POST", Right.CLIENT, vectors("rank")),
                "/v1/score": Route("POST", Right.CLIENT, vectors("scor")),
                "/openapi.json": Route("GET", Right.HEALTH, self._openapi),
                "/docs": Route("GET", Right.HEALTH, self._docs),
                "/health": Route("GET", Right.HEALTH, self._health),
                "/ready": Route("GET", Right.HEALTH, self._ready),
                "/metrics": Route("GET", Right.METRICS, self._metrics),
                "/metrics/engines": Route("GET", Right.METRICS, self._engine_metrics),
                "/disagg": Route("GET", Right.HEALTH, page.page),
                "/disagg/events": Route("GET", Right.STATUS, page.events),
                "/disagg/status": Route("GET", Right.STATUS, self._status),
                "/disagg/loads": Route("GET", Right.STATUS, self._loads),
                # the rest of the path is the name
                "/v1/models/": Route("GET", Right.CLIENT, self._show_model),
                "/v1/requests/": Route("DELETE", Right.CLIENT, self._cancel),
                "/disagg/page/": Route("GET", Right.HEALTH, page.file),
                "/disagg/requests/": Route("GET", Right.STATUS, self._timeline),
                "/disagg/logs/": Route("GET", Right.OPERATE, self._engine_log),
                "/disagg/engines/": Route("POST", Right.OPERATE, self._drain),
                "/disagg/changes": Route("POST", Right.OPERATE, changes.order),
                "/disagg/revisions": Route("GET", Right.OPERATE, changes.look),
            },
        )

    async def start(self, host: str, port: int, *, shares_port: bool = False, tls: Tls | None = None) -> None:
        """`shares_port`: with other processes that say the same."""
        await self._server.start(host, port, shares_port=shares_port, tls=tls)

    async def stop(self, limit_s: float) -> None:
        """Running requests may end within the limit; then they are cancelled."""
        self._whole.feed.close()
        await self._server.stop(limit_s)
        for model in self._models.here:
            await _close(model)

    def add(self, backend: Backend, tokenization: Tokenization) -> Model:
        """One more model, which may be named from now on."""
        model = self._model(backend, tokenization)
        self._models.add(model)
        return model

    def of(self, backend: Backend) -> Model:
        return next(model for model in self._models.here if model.backend is backend)

    def leaves(self, model: Model) -> None:
        """Nobody may name it any more; its requests go on."""
        self._models.leaves(model)

    async def remove(self, model: Model) -> None:
        """Its requests have ended."""
        self._models.remove(model)
        await _close(model)

    async def start_reader(self) -> None:
        """Ahead of the first body that needs one; without it that one waits for a process to start."""
        for model in self._models.all:
            await model.tokenization.start()

    @property
    def port(self) -> int:
        return self._server.port

    async def __call__(self, call: Call) -> None:
        exchange = Exchange(call)
        exchange.answer_headers += self._headers
        try:
            await self._answer(exchange)
        except ClientGone:
            exchange.error_type = "client_gone"
            call.abort()  # what the client has not taken yet would otherwise keep it for ever
        except RequestError as error:
            await exchange.fail(error)
        except asyncio.CancelledError:  # by HttpServer.stop alone, which waits for what is said here
            await exchange.fail(NoReadyPair("frontend", "this server stops", "try again"))
        except Exception:
            log.exception(
                "%s %r %s: an error nobody foresaw", exchange.method, exchange.path[:100], exchange.request_id
            )
            await exchange.fail(RequestError("frontend", "internal error", "see the frontend's log"))
        finally:
            if exchange.error_type not in ("", "client_gone"):  # who has left was told nothing
                self._refusals.add_error(exchange.error_type)
            if exchange.trace is not None:
                exchange.trace.end(exchange.status, exchange.error_type)

    async def _answer(self, exchange: Exchange) -> None:
        found = self._routes.find(exchange.path)
        route, name = found or (None, "")
        if route is not None:
            exchange.error_body = route.error_body
        if route is None or route.right in FOR_PAGES:
            self._origins.mark(exchange)
            if exchange.method == "OPTIONS" and route is not None:
                self._origins.preflight(exchange, _methods(route))
                await exchange.call.respond(204, exchange.answer_headers, b"")
                return
        caller = self._keys.check(exchange, Right.CLIENT if route is None else route.right)
        if route is None:
            raise self._routes.unknown(exchange.path)
        if not route.takes(exchange.method):
            exchange.answer_headers.append((b"allow", _methods(route)))
            what = f"{exchange.method} is not for {exchange.path[:100]}; use {' or '.join(route.methods)}"
            raise BadRequest(None, "method_not_allowed", what, http_status=405)
        if self._tracer is not None and route.right is Right.CLIENT and exchange.method == "POST":
            exchange.trace = self._tracer.begin(exchange.path, exchange.request_header(b"traceparent"))
        if route.acts(exchange.method):
            with self._audit.action(exchange, self._keys.name_of(caller)):
                await route.handler(exchange, name, caller)
        else:
            await route.handler(exchange, name, caller)

    def _generation(self, endpoint: str) -> Handler:
        async def handle(exchange: Exchange, _: str, caller: Caller) -> None:
            model = await self._models.of_body(exchange)
            await model.generations.answer(exchange, endpoint, caller.owner)

        return handle

    def _here(self, endpoint: str) -> Handler:
        async def handle(exchange: Exchange, _: str, caller: Caller) -> None:
            model = await self._models.of_body(exchange)
            await model.generations.answer_here(exchange, endpoint)

        return handle

    def _vectors(self, kind: InputKind) -> Handler:
        async def handle(exchange: Exchange, _: str, caller: Caller) -> None:
            model = await self._models.of_body(exchange)
            await model.embeddings.answer(exchange, kind, caller.owner)

        return handle

    async def _list_models(self, exchange: Exchange, _: str, caller: Caller) -> None:
        """Those that the caller's key may name."""
        listed, seen = [], self._seen_by(caller)
        for model in self._models.all:
            if seen(model, ""):
                listed.append(await _model_body(model))
            adapters = [adapter for name, adapter in model.backend.adapters.items() if seen(model, name)]
            listed += [await _adapter_body(model, adapter) for adapter in adapters]
        await _json(exchange, {"object": "list", "data": listed})

    def _seen_by(self, caller: Caller) -> Seen:
        meter = self._meters.of(caller.owner)
        return by_everybody if meter is None else lambda model, adapter: meter.may_name(model.name, adapter)

    async def _show_model(self, exchange: Exchange, name: str, caller: Caller) -> None:
        model = self._models.find(name, self._seen_by(caller))
        adapter = model.backend.served.adapter_of(name)
        body = await (_adapter_body(model, model.backend.adapters[adapter]) if adapter else _model_body(model))
        await _json(exchange, {**body, "id": name})

    async def _openapi(self, exchange: Exchange, _: str, caller: Caller) -> None:
        await _json(exchange, openapi.document(self._routes.all))

    async def _docs(self, exchange: Exchange, _: str, caller: Caller) -> None:
        exchange.answer_headers.append((b"content-security-policy", b"default-src 'none'; style-src 'unsafe-inline'"))
        await exchange.answer(200, openapi.page(openapi.document(self._routes.all)).encode(), HTML)

    async def _health(self, exchange: Exchange, _: str, caller: Caller) -> None:
        await _json(exchange, {"status": "alive"})

    async def _ready(self, exchange: Exchange, _: str, caller: Caller) -> None:
        """With several models: one of them can serve, or the one that `?model=` names."""
        named = exchange.query("model") is not None
        is_ready, why_not = (self._models.of_query(exchange).backend if named else self._whole).ready()
        if not is_ready:
            raise NoReadyPair("frontend", why_not)
        await _json(exchange, {"status": "ready"})

    async def _metrics(self, exchange: Exchange, _: str, caller: Caller) -> None:
        await exchange.answer(200, await self._together.metrics(), PROMETHEUS)

    async def _engine_metrics(self, exchange: Exchange, _: str, caller: Caller) -> None:
        await exchange.answer(200, await self._engine_figures.text(exchange.query("engine")), PROMETHEUS)

    async def _status(self, exchange: Exchange, _: str, caller: Caller) -> None:
        await _json(exchange, await self._together.status(None if caller.sees_all else caller.owner))

    async def _loads(self, exchange: Exchange, _: str, caller: Caller) -> None:
        await _json(exchange, await self._whole.loads())

    async def _timeline(self, exchange: Exchange, name: str, caller: Caller) -> None:
        await _json(exchange, await self._together.timeline(name, caller))

    async def _engine_log(self, exchange: Exchange, name: str, caller: Caller) -> None:
        text = await self._whole.engine_log(name, _line_count(exchange.query("lines")))
        if text is None:
            raise BadRequest("engine", "engine_not_found", f"there is no engine '{name[:100]}' here", http_status=404)
        await exchange.answer(200, text.encode(errors="replace"), TEXT)

    async def _drain(self, exchange: Exchange, name: str, caller: Caller) -> None:
        """POST /disagg/engines/ENGINE/drain[?restart=1]"""
        engine_id, _, action = name.rpartition("/")
        if action != "drain" or not engine_id:
            raise BadRequest(None, "unknown_url", f"there is no {exchange.path[:100]} here", http_status=404)
        restart = exchange.query("restart") == "1"
        exchange.action = f"drain {engine_id}{' --restart' * restart}"
        why_not = await self._whole.drain(engine_id, restart=restart)
        if why_not is not None:
            raise BadRequest("engine", "cannot_drain", why_not, http_status=409)
        await _json(exchange, {"id": engine_id, "draining": True})

    async def _cancel(self, exchange: Exchange, name: str, caller: Caller) -> None:
        if not await self._cancels(exchange, name, caller):
            raise no_such_request(name)
        await _json(exchange, {"id": bare_id(name), "cancelled": True})

    async def _cancels(self, exchange: Exchange, name: str, caller: Caller) -> bool:
        """Whether it ran, and was this caller's: then it is written down."""
        is_cancelled = await self._together.cancel(name, caller)
        if is_cancelled:
            self._audit.cancelled(exchange, self._keys.name_of(caller), bare_id(name), is_operator=caller.sees_all)
        return is_cancelled


def _model(
    backend: Backend,
    tokenization: Tokenization,
    body_limit_bytes: int,
    peers: Peers | None,
    kept: ResponseStore,
    meters: Meters,
) -> Model:
    generations = Generations(backend, tokenization, body_limit_bytes, peers, kept, meters)
    embeddings = Embeddings(backend, tokenization, body_limit_bytes, generations.running, meters)
    return Model(backend, tokenization, generations, embeddings)


async def _close(model: Model) -> None:
    model.generations.close()
    await model.tokenization.stop()


async def _model_body(model: Model) -> dict[str, Any]:
    """`max_model_len` is vLLM's and SGLang's addition, which clients read to size their prompts."""
    facts = await facts_now(model.tokenization, model.backend)
    return {
        "id": model.name,
        "object": "model",
        "created": model.backend.created_s,
        "owned_by": "disagg",
        "max_model_len": facts.context_length if facts else None,
    }


async def _adapter_body(model: Model, adapter: Adapter) -> dict[str, Any]:
    """As OpenAI shows a fine-tuned model, and SGLang an adapter, with the model that it is of. Its folder is for
    operators alone."""
    of = {"root": model.name, "parent": model.name}
    return {**await _model_body(model), "id": adapter.name, "created": adapter.created_s, **of}


async def _json(exchange: Exchange, content: dict[str, Any]) -> None:
    await exchange.answer(200, encode(content))


def _methods(route: Route) -> bytes:
    more = ("OPTIONS",) if route.right in FOR_PAGES else ()
    return ", ".join((*route.methods, *more)).encode()


def _line_count(text: str | None) -> int:
    if text is None:
        return LOG_LINES
    # Its length first: of a number with thousands of digits `int` makes a ValueError.
    if not text.isdecimal() or len(text) > LOG_LINES_DIGITS or not 1 <= int(text) <= ASKED_LINES_MAX:
        raise BadRequest("lines", "invalid_value", f"'lines' must be a number from 1 to {ASKED_LINES_MAX}")
    return int(text)
