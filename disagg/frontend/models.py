"""The models of a frontend, and which of them a request is for.

Way:   app.py -> [Models.of_body] -> that model's Generations or Embeddings, from there on as if it were the only one
In:    a body's `model`: a model's name, MODEL:ADAPTER, or an adapter's name that one model alone has
Owns:  which models this frontend has: those that may be named, and those whose last requests end
Cost:  nothing with one model: its bodies are not looked at here. With several a look through the body, and one in a
       table
Fails: BadRequest: 404 for a name that is not here, 400 where none is said, or several models have such an adapter. A
       body that cannot be read goes to the first model, whose reader says what is wrong with it
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from disagg.errors import BadRequest, NoReadyPair
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


Seen = Callable[[Model, str], bool]  # whether somebody may name this model, or its adapter


def by_everybody(_model: Model, _adapter: str) -> bool:
    return True


class Models:
    """`body_limit_bytes`: of a request's body; a longer one gets 413. `here`: all that are not closed, also those that
    nobody may name any more."""

    def __init__(self, models: Sequence[Model], body_limit_bytes: int) -> None:
        self._body_limit_bytes = body_limit_bytes
        self.here = list(models)
        self._by_name = {model.name: model for model in models}

    @property
    def all(self) -> tuple[Model, ...]:
        """Those that may be named, in the order in which they came."""
        return tuple(self._by_name.values())

    @property
    def first(self) -> Model:
        """Raises NoReadyPair where there is none any more."""
        for model in self._by_name.values():
            return model
        raise NoReadyPair("frontend", "no model is served here now", "try again")

    @property
    def _is_one(self) -> bool:
        return len(self._by_name) == 1

    def add(self, model: Model) -> None:
        """It may be named from now on, in the place of another one of that name."""
        self.here.append(model)
        self._by_name[model.name] = model

    def leaves(self, model: Model) -> None:
        """Nobody may name it any more."""
        if self._by_name.get(model.name) is model:
            del self._by_name[model.name]

    def remove(self, model: Model) -> None:
        self.leaves(model)
        self.here.remove(model)

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

    def find(self, name: str, seen: Seen = by_everybody) -> Model:
        """`seen`: what is not is as if it were not here."""
        found = self._by_name.get(name)
        if found is not None and seen(found, ""):
            return found
        with_adapter = [model for model in self.all if _has(model, name, seen)]
        if len(with_adapter) > 1:
            names = " or ".join(f"'{model.name}:{name}'" for model in with_adapter[:NAMES_TOLD])
            raise BadRequest("model", "ambiguous_model", f"several models here have an adapter '{name}'; say {names}")
        if with_adapter:
            return with_adapter[0]
        if self._is_one and seen is by_everybody:
            raise no_such_model(name, self.first.backend.served)
        what = f"there is no model '{name[:100]}' here; {self._there(seen)}"
        raise BadRequest("model", "model_not_found", what, http_status=404)

    def _there(self, seen: Seen = by_everybody) -> str:
        names = [name for model in self.all for name in _names(model, seen)]
        more = f", and {len(names) - NAMES_TOLD} more" if len(names) > NAMES_TOLD else ""
        told = ", ".join(f"'{name}'" for name in names[:NAMES_TOLD])
        return f"there are {told}{more}" if told else "there is none for you"


def _has(model: Model, name: str, seen: Seen) -> bool:
    adapter = model.backend.served.adapter_of(name)
    return adapter is not None and seen(model, adapter)


def _names(model: Model, seen: Seen) -> list[str]:
    adapters = [f"{model.name}:{name}" for name in sorted(model.backend.adapters) if seen(model, name)]
    return [model.name, *adapters] if seen(model, "") else adapters
