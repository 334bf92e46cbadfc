"""SGLang's own figures, for whoever asks: engines are asked once in KEPT_S, however many scrape.

Way:   GET /metrics/engines -> [EngineFigures] -> Whole -> text_of
Owns:  the newest text of all engines, and of each that was named, for KEPT_S
Fails: as Whole
"""

from __future__ import annotations

import asyncio

from disagg.frontend.whole import Whole
from disagg.telemetry.engine_metrics import text_of

KEPT_S = 5.0


class EngineFigures:
    """One question is under way at a time: reading takes the engines' time, and its answer memory here."""

    def __init__(self, whole: Whole) -> None:
        self._whole = whole
        self._asking = asyncio.Lock()
        self._kept: dict[str | None, bytes] = {}

    async def text(self, engine_id: str | None) -> bytes:
        """None: of all engines. One that is not there is asked for in vain, and nothing of it is kept."""
        async with self._asking:
            kept = self._kept.get(engine_id)
            if kept is not None:
                return kept
            told = await self._whole.engine_metrics(engine_id)
            text = await asyncio.to_thread(text_of, told)
            if told:
                self._kept[engine_id] = text
                asyncio.get_running_loop().call_later(KEPT_S, self._kept.pop, engine_id)
            return text
