"""Debian's chromium, headless, driven over its DevTools protocol."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
CODES = {"Escape": 27}  # of keys to which the browser itself listens
START_S = 120.0  # of a browser, on a busy machine


@dataclass
class Tab:
    socket: aiohttp.ClientWebSocketResponse
    console: list[str] = field(default_factory=list)  # what the page logged, and errors nobody caught
    _calls: int = 0

    async def call(self, method: str, **parameters: Any) -> Any:
        self._calls += 1
        await self.socket.send_json({"id": self._calls, "method": method, "params": parameters})
        async with asyncio.timeout(START_S):
            while True:
                said = await self.socket.receive_json()
                if said.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled"):
                    self.console.append(json.dumps(said["params"])[:2000])
                if said.get("id") == self._calls:
                    assert "error" not in said, said
                    return said["result"]

    async def eval(self, expression: str) -> Any:
        """The value of an expression in the page; a promise's, once it has one."""
        said = await self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in said, said["exceptionDetails"]
        return said["result"].get("value")

    async def until(self, expression: str, limit_s: float) -> float:
        """Waits until the expression is true in the page; how long that took, in seconds."""
        began_s = time.monotonic()
        while not await self.eval(expression):
            if time.monotonic() - began_s > limit_s:
                shown = await self.eval("document.body.innerText")
                raise AssertionError(f"not within {limit_s} s: {expression}\n{self.console}\n{shown}")
            await asyncio.sleep(0.05)
        return time.monotonic() - began_s

    async def key(self, key: str) -> None:
        said = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
        for kind in ("keyDown", "keyUp"):
            text = {"text": said} if said and kind == "keyDown" else {}
            await self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=CODES.get(key, 0), **text
            )


@asynccontextmanager
async def browsing(url: str, folder: Path) -> AsyncIterator[Tab]:
    """A tab that has begun to load the page; `folder`: the browser's own, empty."""
    assert BROWSER is not None
    words = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-port=0"]
    process = await asyncio.create_subprocess_exec(
        BROWSER,
        *words,
        "--window-size=1400,1000",
        f"--user-data-dir={folder}",
        "about:blank",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(START_S), aiohttp.ClientSession() as session:
            while not (told := folder / "DevToolsActivePort").exists() or not told.read_text().strip():
                await asyncio.sleep(0.05)
            at = f"http://127.0.0.1:{told.read_text().split()[0]}/json/list"
            while not (tabs := [t for t in await (await session.get(at)).json() if t["type"] == "page"]):
                await asyncio.sleep(0.05)
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(tabs[0]["webSocketDebuggerUrl"], max_msg_size=0) as socket,
        ):
            tab = Tab(socket)
            for each in ("Runtime", "Log", "Page"):
                await tab.call(f"{each}.enable")
            await tab.call("Page.navigate", url=url)
            yield tab
    finally:
        process.terminate()
        await process.wait()
