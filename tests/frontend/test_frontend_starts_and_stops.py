"""The port, the end, and what operators ask."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from scripted import MODEL, ScriptedBackend, ask, exchange, hangs, http_request, make_model_folder, says, serving, until

from disagg.adapters import Served
from disagg.coordinator.limits import Limits
from disagg.errors import StartError
from disagg.frontend.app import Frontend
from disagg.frontend.own_tokenizer import OwnTokenizer
from disagg.frontend.server import listen
from disagg.frontend.spec import FrontendSpec, ModelSpec
from disagg.host_spec import SECRET_VARIABLE
from disagg.tokenizer.codec import Codec, load_codec


async def test_a_port_in_use_is_told(codec: Codec) -> None:
    async with serving(ScriptedBackend(says("x")), codec) as first:
        with pytest.raises(StartError, match=r"in use.*frontend\.port"):
            await Frontend(ScriptedBackend(says("x")), OwnTokenizer(codec, lambda: Served(MODEL))).start(
                "127.0.0.1", first.port
            )


def test_an_address_of_another_machine_is_told() -> None:
    with pytest.raises(StartError, match=r"cannot listen.*frontend\.host"):
        listen("192.0.2.1", 0)


async def test_accepted_connections_have_nodelay() -> None:
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = await asyncio.get_running_loop().sock_accept(listener)
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        accepted.close()


async def test_a_stop_lets_what_runs_end_and_takes_no_more(codec: Codec) -> None:
    backend = ScriptedBackend(says("a", "b", gap_s=0.1))
    frontend = Frontend(backend, OwnTokenizer(codec, lambda: Served(MODEL)))
    await frontend.start("127.0.0.1", 0)
    running = asyncio.create_task(exchange(frontend.port, ask()))
    await until(lambda: len(backend.requests) == 1)
    await frontend.stop(30.0)
    assert (await running).json["choices"][0]["message"]["content"] == "ab"
    with pytest.raises(OSError):
        await asyncio.open_connection("127.0.0.1", frontend.port)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_stop_cancels_what_outlives_the_limit_and_says_so(codec: Codec, stream: bool) -> None:
    backend = ScriptedBackend(hangs("a"))
    frontend = Frontend(backend, OwnTokenizer(codec, lambda: Served(MODEL)))
    await frontend.start("127.0.0.1", 0)
    running = asyncio.create_task(exchange(frontend.port, ask(stream=stream)))
    await until(lambda: len(backend.requests) == 1)
    await asyncio.sleep(0.02)
    await frontend.stop(0.1)
    assert backend.closed == ["cancelled"]
    answer = await running
    assert answer.status == (200 if stream else 503)
    assert b"this server stops" in answer.body
    assert b"[DONE]" not in answer.body


async def test_what_operators_ask(codec: Codec) -> None:
    backend = ScriptedBackend(says("x"), not_ready="decode-0 is starting")
    async with serving(backend, codec) as frontend:

        async def get(path: str, method: str = "GET") -> tuple[int, str]:
            answer = await exchange(frontend.port, http_request(method, path))
            return answer.status, answer.body.decode()

        assert (await get("/health"))[0] == 200
        status, body = await get("/ready")
        assert status == 503
        assert "decode-0 is starting" in body
        backend.not_ready = ""
        assert (await get("/ready"))[0] == 200
        assert await get("/metrics") == (200, "disagg_requests_live 0\n")
        assert await get("/disagg/status") == (200, '{"engines":[],"live":[]}')
        assert await get("/disagg/loads") == (200, '{"prefill-0#1":[]}')
        assert await get("/disagg/logs/prefill-0?lines=7") == (200, "prefill-0 7\n")
        assert (await get("/disagg/logs/nobody"))[0] == 404
        assert (await get("/disagg/logs/prefill-0?lines=many"))[0] == 400
        answer = await exchange(frontend.port, ask())
        request_id = answer.headers["x-request-id"]
        for name in (request_id, answer.json["id"]):
            status, body = await get(f"/disagg/requests/{name}")
            assert (status, json.loads(body)["id"]) == (200, request_id)
        assert (await get("/disagg/requests/unknown"))[0] == 404
        assert (await get(f"/v1/requests/{request_id}", "DELETE"))[0] == 200
        assert (await get("/v1/requests/unknown", "DELETE"))[0] == 404


async def test_draining_an_engine(codec: Codec) -> None:
    async with serving(backend := ScriptedBackend(says("Hi")), codec) as frontend:
        begun = await exchange(frontend.port, http_request("POST", "/disagg/engines/prefill-0/drain?restart=1"))
        assert (begun.status, json.loads(begun.body)) == (200, {"id": "prefill-0", "draining": True})
        refused = await exchange(frontend.port, http_request("POST", "/disagg/engines/no-such/drain"))
        assert (refused.status, json.loads(refused.body)["error"]["code"]) == (409, "cannot_drain")
        unknown = await exchange(frontend.port, http_request("POST", "/disagg/engines/prefill-0/polish"))
        assert unknown.status == 404
    assert backend.drained == [("prefill-0", True), ("no-such", False)]


def test_a_folder_without_a_tokenizer_is_told(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"no tokenizer\.json.*AutoTokenizer"):
        load_codec(tmp_path)
    make_model_folder(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(StartError, match="no context length"):
        load_codec(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(StartError, match="not JSON"):
        load_codec(tmp_path)


def test_the_ids_that_end_an_answer_are_those_of_both_files(tmp_path: Path) -> None:
    make_model_folder(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"eos_token_id": 2}))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 7]}))
    assert load_codec(tmp_path).end_ids == {2, 7}


def test_a_tokenizer_is_read_before_the_registry_is_met(tmp_path: Path) -> None:
    """The other way round, a machine slow enough for it to take 5 s lost the connection, and the frontend ended."""
    spec = FrontendSpec(
        registry="127.0.0.1:1",  # nobody listens there
        control="127.0.0.1:1",
        host="127.0.0.1",
        port=0,
        body_limit_bytes=1 << 20,
        models=(ModelSpec(path=str(tmp_path), name="none"),),
        number=0,
        stop_s=1.0,
        limits=Limits(),
    )
    process = subprocess.run(
        [sys.executable, "-P", "-m", "disagg.frontend.main"],
        input=msgspec.json.encode(spec) + b"\n",
        capture_output=True,
        env=os.environ | {SECRET_VARIABLE: "00" * 32},
        timeout=60,
        check=False,
    )
    assert process.returncode == 1
    assert b"has no tokenizer.json" in process.stdout, process.stderr
