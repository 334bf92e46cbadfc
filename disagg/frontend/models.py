"""The models of a frontend, and which of them a request is for.

Way:   app.py -> [Models.of_body] -> that model's Generations or Embeddings, from there on as if it were the only one
In:    a body's `model`: a model's name, MODEL:ADAPTER, or an adapter's name that one model alone has
Cost:  nothing with one model: its bodies are not looked at here. With several a look through the body, and one in a
       table
Fails: BadRequest: 404 for a name that is not here, 400 where none is said, or several models have such an adapter. A
       body that cannot be read goes to the first model, whose reader says what is wrong with it
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from disagg.errors import BadRequest
from disagg.frontend import receiving
from disagg.frontend.backend import Backend
from disagg.frontend.body import UTF_8_MARK
from disagg.frontend.embeddings import Embeddings
from disagg.frontend.exchange import Exchange
from disagg.frontend.generation import Generations
from disagg.frontend.request_body import NAMES_TOLD, no_such_model
from disagg.frontend.tokenization import Tokenization


class _Named(msgspec.Struct):
    """Of a body, without a look at the rest."""

    model: str | None = None


_named = msgspec.json.Decoder(_Named).decode


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """One model, and all of a frontend that is its own."""

    backend: Backend
    tokenization: Tokenization
    generations: Generations
    embeddings: Embeddings

    @property
    def name(self) -> str:
        return self.backend.model_name


class Models:
    """One at least. `body_limit_bytes`: of a request's body; a longer one gets 413."""

    def __init__(self, models: Sequence[Model], body_limit_bytes: int) -> None:
        self.all, self.first, self._body_limit_bytes = tuple(models), models[0], body_limit_bytes
        self._by_name = {model.name: model for model in models}
        self._is_one = len(self.all) == 1

    async def of_body(self, exchange: Exchange) -> Model:
        if self._is_one:
            return self.first
        receiving.name(exchange, self.first.backend)
        with exchange.while_connected():
            receiving.check_head(exchange)
            body = await exchange.peek(self._body_limit_bytes)
            try:
                name = _named(body.removeprefix(UTF_8_MARK)).model
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                return self.first
        return self.said(name)

    def of_query(self, exchange: Exchange) -> Model:
        """The one that `?model=` names; the first, where none is."""
        name = exchange.query("model")
        return self.first if name is None else self.find(name)

    def said(self, name: str | None) -> Model:
        """What is not said is clear where there is one."""
        if name is None and not self._is_one:
            what = f"'model' is missing; {self._there()}"
            raise BadRequest("model", "missing_required_parameter", what)
        return self.first if name is None else self.find(name)

    def find(self, name: str) -> Model:
        found = self._by_name.get(name)
        if found is not None:
            return found
        with_adapter = [model for model in self.all if model.backend.served.adapter_of(name) is not None]
        if len(with_adapter) > 1:
            names = " or ".join(f"'{model.name}:{name}'" for model in with_adapter[:NAMES_TOLD])
            raise BadRequest("model", "ambiguous_model", f"several models here have an adapter '{name}'; say {names}")
        if with_adapter:
            return with_adapter[0]
        if self._is_one:
            raise no_such_model(name, self.first.backend.served)
        what = f"there is no model '{name[:100]}' here; {self._there()}"
        raise BadRequest("model", "model_not_found", what, http_status=404)

    def _there(self) -> str:
        names = [name for model in self.all for name in (model.name, *_adapters(model))]
        more = f", and {len(names) - NAMES_TOLD} more" if len(names) > NAMES_TOLD else ""
        told = ", ".join(f"'{name}'" for name in names[:NAMES_TOLD])
        return f"there are {told}{more}"


def _adapters(model: Model) -> list[str]:
    return [f"{model.name}:{name}" for name in sorted(model.backend.adapters)]
