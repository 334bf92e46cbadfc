"""The page in a real browser beside a test that waits for other things, too."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any

from tests.frontend.browser import BROWSER, browsing


@contextmanager
def in_sight(url: str, folder: Path) -> Iterator[Callable[[str, float], float]]:
    """Yields what waits until an expression is true in the page, at most so long, and returns the seconds it took.
    `folder`: the browser's own. Where there is no browser nothing is waited for."""
    if BROWSER is None:
        yield lambda _expression, _limit_s: 0.0
        return
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def run(work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result()

    stack = AsyncExitStack()
    try:
        tab = run(stack.enter_async_context(browsing(url, folder)))
        yield lambda expression, limit_s: float(run(tab.until(expression, limit_s)))
    finally:
        run(stack.aclose())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
