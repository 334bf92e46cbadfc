"""What the HTTP layer asks of all that stands behind it (`Service` is the real one, tests script their own)."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, Protocol

from disagg.coordinator.request import Piece, Request


class Backend(Protocol):
    model_name: str  # what clients say
    created_s: int  # wall clock
    context_length: int  # tokens, prompt + output

    @property
    def request_tokens_max(self) -> int:
        """Largest prompt + output the engines can hold; 0 while that is not known."""

    @property
    def ignored(self) -> dict[str, str]:
        """Sampling parameters that some engine here would take and not heed -> what would do."""

    def generate(self, request: Request) -> AsyncGenerator[Piece, None]:
        """Raises RequestError, before or after the first piece. Closing it cancels both legs.

        It is asked for the next piece only when the last one is written: what comes meanwhile it merges into one.
        """

    def ready(self) -> tuple[bool, str]:
        """And why not."""

    def status(self, owner: bytes | None) -> dict[str, Any]:
        """With the ids of this owner's running requests; None: of all of them."""

    async def loads(self) -> dict[str, Any]:
        """What each connected engine itself says of the load of its ranks."""

    def owner_of(self, request_id: str) -> bytes | None:
        """None: there is no such request."""

    def timeline(self, request_id: str) -> dict[str, Any]:
        """Of a request that `owner_of` knows."""

    def cancel(self, request_id: str) -> bool: ...

    async def engine_log(self, engine_id: str, lines: int) -> str | None: ...

    async def drain(self, engine_id: str, restart: bool) -> str | None:
        """Begins to drain an engine; why it cannot be, or None."""

    def new_request_id(self) -> str: ...

    def metrics(self) -> bytes:
        """In Prometheus' text format."""
