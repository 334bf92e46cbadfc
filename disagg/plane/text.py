"""What a host's tokenizer does for frontends that have none (disagg/process/text_service.py is the real one).

Way:   plane server -> [TextService.read] -> ids; an engine's ids -> [LegText] -> Shown, beside their Delta
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from disagg.plane.messages import HasRead, TextWanted


class LegText(Protocol):
    """Of one leg."""

    def push(self, token_ids: list[int]) -> list[str]:
        """Of each id the text that it completes."""

    @property
    def unfinished(self) -> str:
        """What would be shown beside, if the answer ended here."""

    def bytes_of(self, token_ids: Iterable[int]) -> dict[int, bytes]: ...


class TextService(Protocol):
    async def read(self, number: int, words: str, body: bytes) -> HasRead:
        """Cancelled: nobody waits any more."""

    def leg_text(self, wanted: TextWanted, emitted_ids: list[int]) -> LegText: ...
