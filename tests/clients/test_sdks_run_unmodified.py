"""The libraries that applications are written with, as they come from the registry.

Chats, tools, parsed answers, streams, vectors: each library is one program (run_*.py) in a venv of its own (venvs.py),
against the real frontend with its parsers and a scripted backend; vectors come from simulated engines. What each was
told is compared whole.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from chat_styles import QWEN
from scripted import MODEL, Running, Script, ScriptedBackend, make_model_folder, serving
from vector_scene import scene
from venvs import INSTALL_S, LIMIT_S, run_client

from disagg.frontend.app import Frontend
from disagg.frontend.own_tokenizer import parsing_of
from disagg.roles import Role
from disagg.tokenizer.codec import Codec, load_codec

HERE = Path(__file__).parent
pytestmark = [pytest.mark.clients, pytest.mark.timeout(INSTALL_S + LIMIT_S)]

PERSON = {"name": "Bob", "age": 7}
CALL = [["weather", {"city": "Paris"}]]
HELLO, RESULT = "Hello there", "It rains"


def answers(codec: Codec) -> Script:
    """What is said depends on the last turn, and on whether the answer was to be JSON, or a call of Person."""

    async def script(running: Running) -> None:
        turn = codec.text_of(list(running.request.prompt_ids), skip_special_tokens=False).rpartition(
            "<|im_start|>user"
        )[2]
        sampling = running.request.sampling
        if "weather" in turn:
            said = called("weather", {"city": "Paris"})
        elif "structural_tag" in sampling:
            said = called("Person", PERSON)
        elif "rain" in turn:
            said = RESULT
        else:
            said = json.dumps(PERSON) if "json_schema" in sampling or "json" in turn else HELLO
        pieces = [said[start : start + 7] for start in range(0, len(said), 7)]
        for index, piece in enumerate(pieces):
            await running.say(piece, [index], "stop" if index == len(pieces) - 1 else None)

    return script


def called(name: str, arguments: dict[str, Any]) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


@pytest.fixture
async def frontend(tmp_path: Path) -> AsyncIterator[Frontend]:
    folder = tmp_path / "model"
    folder.mkdir()
    make_model_folder(folder)
    files = {"config.json": {"max_position_embeddings": 8192}, "tokenizer_config.json": {"chat_template": QWEN}}
    for name, more in files.items():
        file = folder / name
        file.write_text(json.dumps(json.loads(file.read_text()) | more))
    codec = load_codec(folder)
    parsing = parsing_of("hermes", None, codec)
    async with serving(ScriptedBackend(answers(codec)), codec, parsing=parsing, refuses_unknown=False) as running:
        yield running


@pytest.fixture
async def vectors(tmp_path: Path) -> AsyncIterator[str]:
    folder = tmp_path / "vectors"
    folder.mkdir()
    async with scene(folder, Role.EMBEDDING) as running:
        yield running.url


async def told(folder: Path, venv: str, program: str, *words: str) -> Any:
    said = await run_client(folder, venv, "python", str(HERE / program), *words)
    return json.loads(said.splitlines()[-1])


async def test_openai(frontend: Frontend, vectors: str, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{frontend.port}"
    assert await told(tmp_path, "sdks", "run_openai.py", url, MODEL, vectors) == {
        "models": [MODEL],
        **dict.fromkeys(("chat", "chat, streamed", "completion"), HELLO),
        **dict.fromkeys(("response", "response, going on", "response, streamed"), HELLO),
        **dict.fromkeys(("parse", "response, parsed"), PERSON),
        "tools": [*CALL[0], "tool_calls"],
        "tools, streamed": [json.dumps(CALL[0][1])],
        "response, tools": CALL,
        "after a call": RESULT,
        "error": "messages",
        "embeddings": [1, 2],
    }


async def test_anthropic(frontend: Frontend, tmp_path: Path) -> None:
    said = await told(tmp_path, "sdks", "run_anthropic.py", f"http://127.0.0.1:{frontend.port}", MODEL)
    assert said == {
        **{"message": HELLO, "why": "end_turn", "streamed": HELLO, "streamed tokens": 2},
        **{"tools": [*CALL[0], "tool_use"], "tools, streamed": [CALL[0][1]], "after a call": RESULT},
        **{"counts": True, "error": "invalid_request_error"},
    }


async def test_langchain_binds_tools_and_gives_structured_output(
    frontend: Frontend, vectors: str, tmp_path: Path
) -> None:
    url = f"http://127.0.0.1:{frontend.port}"
    assert await told(tmp_path, "sdks", "run_langchain.py", url, MODEL, vectors) == {
        **{"invoke": HELLO, "stream": HELLO, "batch": [HELLO, HELLO], "responses": HELLO},
        **{"bind_tools": CALL, "bind_tools, streamed": CALL, "after a call": RESULT},
        **dict.fromkeys(("json_schema", "json_mode", "function_calling"), PERSON),
        "embeddings": 2,
    }


async def test_litellm_in_openais_words_and_in_anthropics(frontend: Frontend, vectors: str, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{frontend.port}"
    assert await told(tmp_path, "sdks", "run_litellm.py", url, MODEL, vectors) == {
        **{name: [HELLO, HELLO, CALL] for name in ("openai", "hosted_vllm", "anthropic")},
        "text": HELLO,
        "embeddings": 2,
    }


async def test_llama_index(frontend: Frontend, tmp_path: Path) -> None:
    said = await told(tmp_path, "llama-index", "run_llama_index.py", f"http://127.0.0.1:{frontend.port}", MODEL)
    assert said == {
        **dict.fromkeys(("chat", "chat, streamed", "complete", "text completion"), HELLO),
        **{"tools": CALL, "predict_and_call": "rain in Paris", "structured": PERSON, "program": PERSON},
    }
