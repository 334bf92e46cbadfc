"""The engine host: one process that holds one engine incarnation and serves the request plane.

Way:   warden -> [host] -> engine; frontends connect to its plane server
In:    a HostSpec; out: one JSON line {"event": "ready", …} on the actor's pipe, then service until it is killed
Fails: whatever stops it ends up in the engine's log; the warden tells the actor the exit status and the last lines
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import socket
import sys
import tempfile
from pathlib import Path

from disagg.engine.interface import Engine, EngineFacts
from disagg.engine.sglang_engine import SGLangEngine
from disagg.engine.spec import LIFE_VARIABLE, SECRET_VARIABLE, HostSpec, decode_spec
from disagg.plane.server import PlaneServer


def run(spec: HostSpec, pipe: socket.socket) -> None:
    """Never returns while the engine lives."""
    os.environ.update(spec.environment)
    os.environ[LIFE_VARIABLE] = spec.life
    os.environ["TMPDIR"] = tempfile.tempdir = spec.scratch
    random.seed()  # a fork has its zygote's state
    logging.basicConfig(level=logging.INFO, format="[%(asctime)s] %(name)s: %(message)s")
    if spec.is_simulated:
        asyncio.run(_simulate(spec, pipe))
        return
    engine = SGLangEngine(spec.arguments, fork=spec.fork, scratch=Path(spec.scratch))
    facts = engine.start()
    engine.loop.run_until_complete(_serve(engine, facts, spec, pipe))


async def _simulate(spec: HostSpec, pipe: socket.socket) -> None:
    from disagg.simulation.arguments import simulated_engine

    engine = simulated_engine(spec)
    facts = engine.start()
    await engine.open()
    await _serve(engine, facts, spec, pipe)


async def _serve(engine: Engine, facts: EngineFacts, spec: HostSpec, pipe: socket.socket) -> None:
    server = PlaneServer(engine, facts, spec.incarnation, bytes.fromhex(os.environ[SECRET_VARIABLE]))
    port = await server.start(spec.plane_host)
    ready = {
        "event": "ready",
        "plane": f"{spec.plane_host}:{port}",
        "ranks": facts.ranks,
        "context_length": facts.context_length,
        "kv_tokens": facts.kv_tokens,
        "request_tokens_max": facts.request_tokens_max,
        "requests_max": facts.requests_max,
        "page_size": facts.page_size,
        "pids": {"host": os.getpid()} | facts.pids,
    }
    pipe.sendall(json.dumps(ready).encode() + b"\n")
    await asyncio.Event().wait()


if __name__ == "__main__":  # spawned, not forked: its arguments are the spec's path and the pipe's number
    run(decode_spec(Path(sys.argv[1]).read_bytes()), socket.socket(fileno=int(sys.argv[2])))
