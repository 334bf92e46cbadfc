"""A real browser: a page of another origin reads a stream where `frontend.cors` lets it, and drains nothing."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from scripted import MODEL, ScriptedBackend, says, serving

from disagg.frontend.keys import Keys
from disagg.frontend.origins import Origins
from disagg.tokenizer.codec import Codec

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
START_S = 120.0  # of a browser, on a busy machine
KEY = "first-key-0123456789"

PAGE = """<!doctype html><script>
async function tried(work) { try { return await work() } catch (error) { return String(error) } }
async function main() {
  const found = {}
  found.stream = await tried(async () => {
    const answer = await fetch(URL_ + '/v1/chat/completions', {method: 'POST', headers: HEADERS, body: BODY})
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader()
    let text = ''
    for (let part; !(part = await reader.read()).done;) text += part.value
    return {text, status: answer.status, id: answer.headers.get('x-request-id')}
  })
  found.error = await tried(async () => {
    const answer = await fetch(URL_ + '/v1/chat/completions', {method: 'POST', headers: HEADERS, body: '{'})
    return (await answer.json()).error.code
  })
  found.status = await tried(async () => (await fetch(URL_ + '/disagg/status')).status)
  found.drain = await tried(async () =>
    (await fetch(URL_ + '/disagg/engines/prefill-0/drain', {method: 'POST', mode: 'no-cors'})).type)
  await fetch('/found', {method: 'POST', body: JSON.stringify(found)})
}
main()
</script>"""


@asynccontextmanager
async def page(url: str) -> AsyncIterator[tuple[int, asyncio.Future[dict[str, Any]]]]:
    """A server of another origin, and what its page sends back."""
    found: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
    asked = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "stream": True}
    headers = {"content-type": "application/json", "authorization": f"Bearer {KEY}"}
    values = {"URL_": url, "HEADERS": headers, "BODY": json.dumps(asked)}
    html = PAGE
    for name, value in values.items():
        html = html.replace(name, json.dumps(value))

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        if head.startswith("post /found"):
            length = int(head.split("content-length:")[1].split()[0])
            said = await reader.readexactly(length)
            if not found.done():
                found.set_result(json.loads(said))
        body = html.encode()
        fields = f"content-type: text/html\r\ncontent-length: {len(body)}\r\nconnection: close"
        writer.write(f"HTTP/1.1 200 OK\r\n{fields}\r\n\r\n".encode() + body)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], found
    finally:
        server.close()


async def seen_by_a_browser(frontend_port: int, folder: Path) -> dict[str, Any]:
    assert BROWSER is not None
    async with page(f"http://127.0.0.1:{frontend_port}") as (port, found):
        words = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", f"--user-data-dir={folder}"]
        process = await asyncio.create_subprocess_exec(
            BROWSER,
            *words,
            f"http://127.0.0.1:{port}/",
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            return await asyncio.wait_for(found, START_S)
        finally:
            process.terminate()
            await process.wait()


@pytest.mark.skipif(BROWSER is None, reason="no chromium here: `.ci/tools` brings it")
@pytest.mark.parametrize("allowed", [True, False], ids=["allowed", "not allowed"])
async def test_a_page_of_another_origin(codec: Codec, allowed: bool, tmp_path: Path) -> None:
    backend = ScriptedBackend(says("Hi", " there", gap_s=0.05))
    keys = Keys() if allowed else Keys([KEY])
    async with serving(backend, codec, keys=keys, origins=Origins(["*"] if allowed else [])) as frontend:
        seen = await seen_by_a_browser(frontend.port, tmp_path)
    if allowed:
        assert seen["stream"]["status"] == 200
        assert seen["stream"]["text"].endswith("data: [DONE]\n\n")
        assert seen["stream"]["id"] == backend.requests[0].id
        assert seen["error"] == "invalid_json"
    else:
        assert "Failed to fetch" in seen["stream"]
        assert "Failed to fetch" in seen["error"]
        assert backend.requests == []  # its preflight was refused
    assert "Failed to fetch" in seen["status"]
    assert seen["drain"] == "opaque"  # the browser sent it, and the frontend refused it
    assert backend.drained == []
