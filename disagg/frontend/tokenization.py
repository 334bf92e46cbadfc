"""Where texts become ids, and ids texts: in this frontend, or in the engines' hosts (`model.tokenization` in the YAML).

Way:   bodies -> [Tokenization] -> prompts; of an answer's tokens their text
       `OwnTokenizer` (own_tokenizer.py) has the tokenizer, `EngineTokenizer` (engine_tokenizer.py) asks for it
"""

from __future__ import annotations

import contextlib
from typing import Protocol

from disagg.coordinator.request import TextSide
from disagg.errors import RequestError
from disagg.frontend.backend import Backend
from disagg.frontend.parsing import Parsing
from disagg.frontend.reading import Read
from disagg.frontend.text_facts import TextFacts


class Tokenization(Protocol):
    @property
    def facts(self) -> TextFacts | None:
        """None: not known yet, since no engine's host has been asked. Known once `ready` or `read` has returned."""

    @property
    def parsing(self) -> Parsing:
        """Of a deployment whose facts are known."""

    async def ready(self) -> None:
        """Until the facts are known. Raises NoReadyPair."""

    async def read(self, data: bytes, endpoint: str) -> Read:
        """What the endpoint's row of READINGS makes of a body. Raises BadRequest, Overloaded, ReaderLost, and where
        the hosts have the tokenizer NoReadyPair and DeadlineExceeded."""

    def answer_text(
        self, stop: tuple[str, ...], end_ids: frozenset[int], *, shows_stop: bool, shows_special: bool
    ) -> TextSide:
        """Of one request. See `disagg.tokenizer.text.text_stream`."""

    def token_text(self, token_id: int) -> tuple[str, bytes]:
        """A token's text and its own bytes: of one that an answer's logprobs name."""

    async def start(self) -> None:
        """Ahead of the first request; without it that one waits longer."""

    async def stop(self) -> None: ...


async def facts_now(tokenization: Tokenization, backend: Backend) -> TextFacts | None:
    """To be told. They are known soon where engines serve, and nobody waits for them where none does."""
    if tokenization.facts is None and backend.ready()[0]:
        with contextlib.suppress(RequestError):
            await tokenization.ready()
    return tokenization.facts


def known(tokenization: Tokenization) -> TextFacts:
    """Where a body has been read."""
    assert tokenization.facts is not None
    return tokenization.facts
