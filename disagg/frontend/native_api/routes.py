"""What SGLang's clients ask of a server beside /generate: what it is, whether it works, and to end a request.

Way:   app.py -> [NativeRoutes] -> Models, Whole
Out:   SGLang's names for what this deployment is as a whole; nothing of hosts and folders
Fails: RequestError; a /health_generate that gets no token is a 503
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from disagg import __version__
from disagg.coordinator.request import NoText, Request
from disagg.coordinator.sink import Nowhere
from disagg.errors import BadRequest, NoReadyPair, RequestError
from disagg.fields import required, typed
from disagg.frontend.body import SMALL_BYTES_MAX, decode_body
from disagg.frontend.exchange import Exchange
from disagg.frontend.key_limits import NO_LIMITS, Meters, metered
from disagg.frontend.keys import Caller
from disagg.frontend.models import Model, Models
from disagg.frontend.request_body import CompletionRequest
from disagg.frontend.responses import encode
from disagg.frontend.tokenization import facts_now
from disagg.frontend.whole import Whole
from disagg.token_ids import TokenIds

TEXT = b"text/plain; charset=utf-8"
FLUSH_WAIT_MAX_S = 60.0


class NativeRoutes:
    """`cancel`: ends a running answer of that id, if it is the caller's. With several models `?model=` names one of
    them; without it the first is meant."""

    def __init__(
        self,
        models: Models,
        whole: Whole,
        cancel: Callable[[Exchange, str, Caller], Awaitable[bool]],
        meters: Meters = NO_LIMITS,
    ) -> None:
        self._models, self._whole, self._cancel, self._meters = models, whole, cancel, meters

    async def health_generate(self, exchange: Exchange, _: str, caller: Caller) -> None:
        """One token of one prompt, from whichever engines are next, counted as any request of its key. Raises
        NoReadyPair where none comes, BadRequest where no engine here makes any, and what the key's limits raise."""
        model = self._models.of_query(exchange)
        if not model.backend.generates:
            raise BadRequest(None, "no_generation_pool", "this model makes vectors alone: ask /ready")
        sampling: dict[str, Any] = {"temperature": 0.0, "ignore_eos": True}
        with exchange.while_connected(), metered(exchange, self._meters, caller.owner) as use:
            prompt_ids = await self._prompt_ids(model)
            request = Request(
                model.backend.new_request_id(),
                prompt_ids,
                sampling,
                1,
                NoText(),
                received_at_s=time.monotonic(),
                owner=caller.owner,
            )
            if use is not None:
                use.read(model.name, "", len(prompt_ids), [request])
            try:
                await model.backend.run(request, Nowhere())
            except RequestError as error:
                raise NoReadyPair("frontend", f"no token came: {error.message}") from error
        await exchange.answer(200, b"{}")

    async def _prompt_ids(self, model: Model) -> TokenIds:
        body = encode({"model": model.name, "prompt": "a"})
        try:
            asked = await model.tokenization.read(body, "text")
        except RequestError as error:
            raise NoReadyPair("frontend", f"no token came: {error.message}") from error
        assert isinstance(asked, CompletionRequest)
        return asked.prompts[0]

    async def server_info(self, exchange: Exchange, _: str, caller: Caller) -> None:
        model = self._models.of_query(exchange)
        is_ready, _why_not = model.backend.ready()
        facts = await facts_now(model.tokenization, model.backend)
        info: dict[str, Any] = {
            "version": __version__,
            "server": "disagg",
            "served_model_name": model.name,
            "model_path": model.name,
            "context_length": facts.context_length if facts else None,
            "request_tokens_max": model.backend.request_tokens_max,
            "status": "ready" if is_ready else "starting",
        }
        await exchange.answer(200, encode(info))

    async def model_info(self, exchange: Exchange, _: str, caller: Caller) -> None:
        model = self._models.of_query(exchange)
        name, facts = model.name, await facts_now(model.tokenization, model.backend)
        info: dict[str, Any] = {
            "model_path": name,
            "tokenizer_path": name,
            "served_model_name": name,
            "is_generation": model.backend.generates,
            "weight_version": "default",
            "max_model_len": facts.context_length if facts else None,
            "vocab_size": facts.vocabulary if facts else None,
        }
        await exchange.answer(200, encode(info))

    async def flush_cache(self, exchange: Exchange, _: str, caller: Caller) -> None:
        """As SGLang's, of all engines: `?timeout=` says for how many seconds each may be waited for. Raises BadRequest
        that names those which run something, when the others have been flushed."""
        wait_s = _seconds(exchange.query("timeout"))
        with exchange.while_connected():
            found = await self._whole.flush_caches(wait_s)
        busy = [f"{life}: {why_not}" for life, why_not in found.items() if why_not]
        if busy:
            flushed = ", ".join(life for life, why_not in found.items() if not why_not) or "none"
            what = f"not flushed: {'; '.join(busy)}. Flushed: {flushed}"
            raise BadRequest(
                None, "cache_not_flushed", f"{what}. Ask again when they are idle, or with a longer timeout"
            )
        lines = ["Cache flushed.", *(f"{life}: flushed" for life in found)]
        await exchange.answer(200, "".join(f"{line}\n" for line in lines).encode(), TEXT)

    async def version(self, exchange: Exchange, _: str, caller: Caller) -> None:
        await exchange.answer(200, encode({"version": __version__}))

    async def abort_request(self, exchange: Exchange, _: str, caller: Caller) -> None:
        """As SGLang's: an id that is not there is no error. Another key's is not there. `rid`: as an answer has it,
        with or without its prefix. Raises BadRequest."""
        body = decode_body(await exchange.call.body(SMALL_BYTES_MAX))
        if body.get("abort_all"):
            raise BadRequest("abort_all", "unsupported_parameter", "'abort_all' is not for clients; name one 'rid'")
        rid = typed(str, required(body, "rid"), "rid")
        is_cancelled = await self._cancel(exchange, rid, caller)
        await exchange.answer(200, msgspec.json.encode({"rid": rid, "aborted": is_cancelled}))


def _seconds(text: str | None) -> float:
    try:
        seconds = float(text or 0)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= FLUSH_WAIT_MAX_S:  # a NaN is not, either
        raise BadRequest("timeout", "invalid_value", f"'timeout' must be a number from 0 to {FLUSH_WAIT_MAX_S:g}")
    return seconds
