"""Pictures of the page for docs/, of a simulated deployment under load.

Usage: PYTHONPATH=. python tests/frontend/screenshots.py docs/page
"""

from __future__ import annotations

import asyncio
import base64
import logging
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

from browser import Tab, browsing
from scripted import make_model_folder
from test_page_in_a_browser import Controller

from disagg.errors import RequestError
from disagg.frontend.app import Frontend
from disagg.frontend.own_tokenizer import OwnTokenizer
from disagg.frontend.service import Service
from disagg.load import parse_config
from disagg.simulation.world import SimulatedDeployment
from disagg.tokenizer.codec import load_codec

CONFIG = """
version: 1
device: simulated
model: {path: simulated}
prefill: {replicas: 3, engine: {ranks: 2, prefill_token_s: 0.0004}}
decode: {replicas: 4, engine: {ranks: 2, step_s: 0.03}}
"""
CHARTS_S, STORY_S = 45, 20
QUALITY = 70


async def load(world: SimulatedDeployment) -> None:
    """Until it is cancelled: requests of all lengths."""
    chance = random.Random(1)

    async def one() -> None:
        tokens, prompt = chance.randrange(20, 1500), [chance.randrange(9000)] * chance.randrange(50, 3000)
        try:
            await world.open(prompt, tokens).rest()
        except RequestError as error:
            logging.info("%s", error)

    async with asyncio.TaskGroup() as group:
        while True:
            group.create_task(one())
            await asyncio.sleep(chance.expovariate(2.0))


async def take(tab: Tab, file: Path) -> None:
    await asyncio.sleep(1.5)  # a painting
    said = await tab.call("Page.captureScreenshot", format="webp", quality=QUALITY)
    file.write_bytes(base64.b64decode(said["data"]))
    print(f"{file}: {file.stat().st_size} bytes")


async def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix="disagg-pictures-"))
    (temporary / "model").mkdir()
    codec = load_codec(make_model_folder(temporary / "model"))
    async with SimulatedDeployment(seed=1, deployment=parse_config(CONFIG)) as world:
        front, control = world.frontends[0], Controller(world)
        parts: dict[str, Any] = {"router": front.router, "coordinator": front.coordinator, "control": control}
        service = Service(model_name="smollm2", **parts)
        frontend = Frontend(service, OwnTokenizer(codec, lambda: service.served))
        await frontend.start("127.0.0.1", 0)
        loading = asyncio.create_task(load(world))
        async with browsing(f"http://127.0.0.1:{frontend.port}/disagg/", temporary / "browser") as tab:
            await asyncio.sleep(STORY_S)
            world.hosts["decode-1"].kill()
            await asyncio.sleep(CHARTS_S - STORY_S)
            await take(tab, folder / "light.webp")
            dark = [{"name": "prefers-color-scheme", "value": "dark"}]
            await tab.call("Emulation.setEmulatedMedia", features=dark)
            await take(tab, folder / "dark.webp")
            await tab.eval("[...ended.querySelectorAll('tr')].at(-1).querySelector('button').click()")
            await tab.until("detail.querySelectorAll('svg rect').length >= 4", 20)
            await tab.call("Emulation.setEmulatedMedia", features=[])
            await take(tab, folder / "timeline.webp")
        loading.cancel()
        await asyncio.wait([loading])
        await frontend.stop(0.2)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
