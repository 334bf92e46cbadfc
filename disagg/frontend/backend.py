"""What the HTTP layer asks of all that stands behind it (`Service` is the real one, tests script their own)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from disagg.adapters import Adapter, Served
from disagg.coordinator.request import Request
from disagg.coordinator.sink import Sink
from disagg.frontend.page.feed import Feed
from disagg.registry.orders import Answer, Asked, Status
from disagg.telemetry.engine_metrics import Told
from disagg.telemetry.metrics import Figures


class Backend(Protocol):
    """One deployment, as a frontend's handlers see it: what it serves, who runs a request, what operators ask of it.

    Properties are looked up at each request: engines and adapters come and go. A test's own answers by a script.
    """

    model_name: str  # what clients say
    created_s: int  # wall clock
    feed: Feed  # of the page

    @property
    def served(self) -> Served:
        """What requests may name: the model, and the adapters that every engine which serves has."""

    @property
    def adapters(self) -> Mapping[str, Adapter]:
        """The latter, by name."""

    async def load_adapter(self, name: str, path: str, pinned: bool) -> str | None:
        """Returns when every engine has it: None, or why it is nowhere."""

    async def unload_adapter(self, name: str) -> str | None:
        """Returns when it is gone: None, or why not."""

    @property
    def generates(self) -> bool:
        """Whether the deployment has engines that make tokens."""

    @property
    def embeds(self) -> bool:
        """Whether it has engines that make vectors."""

    @property
    def embedding_tokens_max(self) -> int:
        """As request_tokens_max, of engines that make vectors."""

    @property
    def request_tokens_max(self) -> int:
        """Largest prompt + output the engines can hold; 0 while that is not known."""

    @property
    def ignored(self) -> dict[str, str]:
        """Sampling parameters that some engine here would take and not heed -> what would do."""

    async def run(self, request: Request, sink: Sink) -> None:
        """Until the sink has the end. Raises RequestError, before or after the first piece; cancelled, both legs are.

        While the sink is not open it gets nothing: what comes meanwhile is merged into one piece.
        """

    def ready(self) -> tuple[bool, str]:
        """(whether requests can be served, why not)."""

    def status(self, owner: bytes | None) -> dict[str, Any]:
        """With the ids of this owner's running requests; None: of all of them."""

    async def loads(self) -> dict[str, Any]:
        """What each connected engine itself says of the load of its ranks."""

    async def engine_metrics(self, engine_id: str | None) -> list[Told]:
        """What engines count themselves, of the one with this id, or of all."""

    async def flush_caches(self, wait_s: float) -> dict[str, str]:
        """Empties the prefix cache of each engine, once it is idle: engine -> why not; "" where it was."""

    def owner_of(self, request_id: str) -> bytes | None:
        """None: there is no such request."""

    def timeline(self, request_id: str) -> dict[str, Any]:
        """Of a request that `owner_of` knows."""

    def cancel(self, request_id: str) -> bool: ...

    async def engine_log(self, engine_id: str, lines: int) -> str | None: ...

    async def drain(self, engine_id: str, restart: bool) -> str | None:
        """Begins to drain an engine; why it cannot be, or None."""

    async def change(self, asked: Asked) -> Answer:
        """What an operator orders of the whole deployment."""

    async def changes(self, show: int) -> Status:
        """How that goes, and what was wanted when. `show`: the revision whose configuration is asked for."""

    def new_request_id(self) -> str: ...

    def figures(self) -> Figures:
        """What is counted here, for another frontend's metrics."""

    def metrics(self, others: Sequence[Figures]) -> bytes:
        """In Prometheus' text format, with what the other frontends have counted."""
