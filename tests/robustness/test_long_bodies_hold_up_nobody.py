"""While a prompt of 100,000 tokens is read, or a schema of 2 MB is refused, streams go on: no turn of the event loop
takes as long as an engine's step. Counted in the processor's time, so that a busy machine changes nothing; in a
stream's own gaps: python -m benchmarks.long_bodies --kind "100,000 tokens" --kind "2 MB of schema"."""

from __future__ import annotations

import asyncio
import http.client
import json
import time
from typing import Any

import pytest
from scripted import MODEL, ScriptedBackend, make_model_folder, says, serving

from disagg.tokenizer.codec import Codec, load_codec

TURN_MS_MAX = 5.0
LISTS: list[list[int]] = [[]] * 500_000
MANY_TOOLS = [
    {"type": "function", "function": {"name": f"f{at}", "parameters": {"enum": [[]] * (20_000 if at else 0)}}}
    for at in range(25)
]
SCHEMA = {"type": "object", "properties": {f"property {number:05d}": {"type": "string"} for number in range(45_000)}}
BODIES: dict[str, tuple[str, dict[str, Any], str]] = {
    "100,000 tokens": ("/v1/completions", {"prompt": "x" * 100_000}, ""),
    "more than the model takes": ("/v1/completions", {"prompt": "x" * 300_000}, "context_length_exceeded"),
    "2 MB of schema": (
        "/v1/chat/completions",
        {
            "messages": [{"role": "user", "content": "Hi"}],
            "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}},
        },
        "invalid_value",
    ),
    "2 MB of a tool": (
        "/v1/chat/completions",
        {
            "messages": [{"role": "user", "content": "Hi"}],
            "tools": [{"type": "function", "function": {"name": "f", "parameters": SCHEMA}}],
        },
        "invalid_value",
    ),
    "2 MB of tools that no template shows": (
        "/v1/chat/completions",
        {
            "messages": [{"role": "user", "content": "Hi"}],
            "tools": MANY_TOOLS,
            "tool_choice": {"type": "function", "function": {"name": "f0"}},
        },
        "schema_too_large",
    ),
    "2 MB of template variables": (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": "Hi"}], "chat_template_kwargs": {"a": LISTS}},
        "too_many_values",
    ),
    "2 MB that an answer would repeat": ("/v1/responses", {"input": "Hi", "metadata": {"a": LISTS}}, "too_many_values"),
    "2 MB of an earlier answer's id": ("/v1/responses", {"input": "Hi", "previous_response_id": LISTS}, "invalid_type"),
    "2 MB of what nobody reads": ("/abort_request", {"rid": "x", "a": LISTS}, "request_too_large"),
    "2 MB of a schema as text": (
        "/generate",
        {"text": "Hi", "sampling_params": {"json_schema": json.dumps(SCHEMA)}},
        "string_above_max_length",
    ),
}


def _post(port: int, path: str, body: bytes) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("POST", path, body)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


@pytest.fixture(scope="module")
def long_codec(tmp_path_factory: pytest.TempPathFactory) -> Codec:
    """Of a model that takes such a prompt."""
    folder = make_model_folder(tmp_path_factory.mktemp("long"))
    config = json.loads((folder / "config.json").read_text()) | {"max_position_embeddings": 200_000}
    (folder / "config.json").write_text(json.dumps(config))
    return load_codec(folder)


@pytest.mark.parametrize(("path", "fields", "code"), BODIES.values(), ids=BODIES)
async def test_no_turn_is_as_long_as_a_step(
    long_codec: Codec, path: str, fields: dict[str, Any], code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns_ms = [0.0]
    run = asyncio.Handle._run

    def timed(handle: asyncio.Handle) -> None:
        began_s = time.thread_time()
        run(handle)
        turns_ms.append((time.thread_time() - began_s) * 1e3)

    body = json.dumps({"model": MODEL, **fields}).encode()
    async with serving(ScriptedBackend(says("Hi")), long_codec) as frontend:
        await frontend.start_reader()
        await asyncio.to_thread(_post, frontend.port, path, body)  # a reader imports, and caches, what it needs
        monkeypatch.setattr(asyncio.Handle, "_run", timed)
        status, said = await asyncio.to_thread(_post, frontend.port, path, body)
        monkeypatch.undo()
    assert said.get("error", {}).get("code") == (code or None)
    assert status == {"": 200, "request_too_large": 413}.get(code, 400)
    print(f"the longest turns: {[round(each, 2) for each in sorted(turns_ms)[:-6:-1]]} ms")
    assert max(turns_ms) < TURN_MS_MAX
