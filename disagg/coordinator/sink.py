"""Where a request's output goes: the one way from the coordinator to whoever has asked.

Way:   decode leg -> TokenBatch -> [Sink] -> the client's socket, or a text that is collected
In:    text as it may be shown, and the token ids that came with it, in order; then the end, once
Owns:  nothing of the request: what a sink does not take now stays with the request's leg, as ids that grow
"""

from __future__ import annotations

from typing import Protocol

from disagg.coordinator.request import FinishReason


class Sink(Protocol):
    """A stream or a collected text of the frontend, or what a test reads with.

    `put` and `end` are called in the midst of a turn of the event loop, for one request after the other: they neither
    wait nor take long. An error that they raise ends their own request alone. A client that leaves cancels
    `Coordinator.run`.
    """

    def is_open(self) -> bool:
        """Whether it takes a piece now."""

    async def opens(self) -> None:
        """Returns when it takes a piece; what comes meanwhile will be one with it."""

    def put(self, text: str, token_ids: list[int]) -> None:
        """What the tokens of one turn add. `text` is empty while they are half a character, or may begin a stop."""

    def end(self, text: str, token_ids: list[int], reason: FinishReason) -> None:
        """The last of it, perhaps nothing, and why it ends. Nothing follows. A request that fails has no such end."""

    def forgets(self) -> bool:
        """Forgets all that was put, where nobody has heard of it; the answer then comes anew. False: it is told."""


class Nowhere:
    """For a request of whose text and tokens nobody hears: its answer is its vector, or that it ended."""

    def is_open(self) -> bool:
        return True

    async def opens(self) -> None:
        pass

    def put(self, text: str, token_ids: list[int]) -> None:
        pass

    def end(self, text: str, token_ids: list[int], reason: FinishReason) -> None:
        pass

    def forgets(self) -> bool:
        return True
