"""A frontend whose engines have the tokenizer imports none of its libraries, and opens no file of the model."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from pathlib import Path

import httpx
import msgspec
import pytest
from before_engines import SECRET
from scripted import MODEL
from speaking_engine import say
from two_frontends import LIMITS, scene

from disagg.cluster.ports import free_port
from disagg.frontend.spec import LISTENING, FrontendSpec, ModelSpec
from disagg.host_spec import SECRET_VARIABLE
from disagg.registry.served import RegistryServer

FORBIDDEN = ("tokenizers", "fastokens", "transformers", "tiktoken", "sentencepiece")
# Runs the frontend where an import of these fails, and each file of the model's folder that is opened is named.
PROGRAM = """
import runpy, sys
class No:
    def find_spec(self, name, *_):
        if name.split(".")[0] in forbidden:
            raise ImportError(f"{name} was imported")
sys.meta_path.insert(0, No())
folder, forbidden = sys.argv[1], sys.argv[2:]
sys.addaudithook(lambda event, args: event == "open" and folder in str(args[0]) and print(args[0], file=sys.stderr))
sys.argv = ["disagg.frontend.main"]
runpy.run_module("disagg.frontend.main", run_name="__main__")
"""


@pytest.mark.parametrize("parsers", [(None, None), ("qwen25", "qwen3")], ids=["plain", "parsers"])
async def test_it_serves_without(tmp_path: Path, parsers: tuple[str | None, str | None]) -> None:
    others = () if any(parsers) else ("jinja2", "sglang")  # SGLang's own rules of parsers read templates with Jinja
    async with scene(tmp_path) as made:
        registry = RegistryServer(made.registry, SECRET)
        at = await registry.start("127.0.0.1")
        port = free_port()
        spec = FrontendSpec(
            registry=f"127.0.0.1:{at}",
            control=f"127.0.0.1:{at}",
            host="127.0.0.1",
            port=port,
            body_limit_bytes=1 << 20,
            models=(
                ModelSpec(
                    path=str(tmp_path),
                    name=MODEL,
                    tokenization="engine",
                    tool_call_parser=parsers[0],
                    reasoning_parser=parsers[1],
                ),
            ),
            number=1,
            stop_s=1.0,
            limits=LIMITS,
        )
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", PROGRAM, str(tmp_path), *FORBIDDEN, *others),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=os.environ | {SECRET_VARIABLE: SECRET.hex()},
        )
        assert process.stdin is not None
        assert process.stdout is not None
        said = "<think>so</think>Grüße" if any(parsers) else "Grüße"
        try:
            process.stdin.write(msgspec.json.encode(spec) + b"\n")
            assert await asyncio.wait_for(process.stdout.readline(), 60) == f"{LISTENING}\n".encode()
            async with httpx.AsyncClient(trust_env=False, timeout=20) as client:
                body = {"model": MODEL, "messages": [{"role": "user", "content": say(said)}], "stream": True}
                answer = await client.post(f"http://127.0.0.1:{port}/v1/chat/completions", content=json.dumps(body))
            assert answer.status_code == 200, answer.text
            assert "".join(re.findall(r'"content":"([^"]*)"', answer.text)) == "Grüße"
        finally:
            process.stdin.close()
            _, log = await asyncio.wait_for(process.communicate(), 20)
            await registry.close()
        assert str(tmp_path) not in log.decode()
        assert b"was imported" not in log
