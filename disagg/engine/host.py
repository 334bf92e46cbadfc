"""The engine host: one process that holds one engine incarnation, or a part of one, and serves the request plane.

Way:   warden -> [host] -> engine; frontends connect to its plane server
In:    a HostSpec; out: one JSON line {"event": "ready", …} on the actor's pipe, then service until it is killed
Fails: whatever stops it ends up in the engine's log; the warden tells the actor the exit status and the last lines
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import os
import random
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any, NoReturn

from disagg.engine.interface import Engine, EngineFacts
from disagg.engine.members import Members, Report
from disagg.engine.sglang_engine import SGLangEngine, SGLangMember
from disagg.engine.spec import FOLLOWED, LIFE_VARIABLE, SECRET_VARIABLE, HostSpec, decode_spec
from disagg.plane.server import PlaneServer

log = logging.getLogger(__name__)


def run(spec: HostSpec, pipe: socket.socket) -> None:
    """Never returns while the engine lives."""
    os.environ.update(spec.environment)
    os.environ[LIFE_VARIABLE] = spec.life
    os.environ["TMPDIR"] = tempfile.tempdir = spec.scratch
    random.seed()  # a fork has its zygote's state
    logging.basicConfig(level=logging.INFO, format="[%(asctime)s] %(name)s: %(message)s")
    if spec.is_simulated:
        asyncio.run(_simulate(spec, pipe))
    elif spec.member:
        _run_member(spec, pipe)
    else:
        _run_first(spec, pipe)


def _run_first(spec: HostSpec, pipe: socket.socket) -> None:
    members = Members(spec.members, lambda leg_id, stage: engine.on_stage(leg_id, stage), _end)
    scratch = Path(spec.scratch)
    engine = SGLangEngine(spec.arguments, fork=spec.fork, scratch=scratch, other_sights=members.sights)
    facts = engine.start()
    engine.loop.run_until_complete(_serve(engine, facts, spec, pipe, members))


def _run_member(spec: HostSpec, pipe: socket.socket) -> None:
    member = SGLangMember(spec.arguments, fork=spec.fork, scratch=Path(spec.scratch))
    facts = member.start()
    member.loop.run_until_complete(_report(spec, pipe, facts, member))


async def _simulate(spec: HostSpec, pipe: socket.socket) -> None:
    from disagg.simulation.arguments import simulated_engine

    if spec.member:
        await _report(spec, pipe, {"pids": {"host": os.getpid()}}, None)
        return
    engine = simulated_engine(spec)
    facts = engine.start()
    await engine.open()
    await _serve(engine, facts, spec, pipe, Members(spec.members, lambda _leg_id, _stage: None, _end))


async def _serve(engine: Engine, facts: EngineFacts, spec: HostSpec, pipe: socket.socket, members: Members) -> None:
    others = members if spec.members > 1 else None
    server = PlaneServer(engine, facts, spec.incarnation, bytes.fromhex(os.environ[SECRET_VARIABLE]), others=others)
    port = await server.start(spec.plane_host, spec.plane_port)
    if others is not None:
        await others.joined()
    said = dataclasses.asdict(facts)
    said["pids"] = {"host": os.getpid()} | facts.pids
    _say_ready(pipe, {"plane": f"{spec.plane_host}:{port}"} | said)
    await asyncio.Event().wait()


async def _report(spec: HostSpec, pipe: socket.socket, facts: dict[str, Any], member: SGLangMember | None) -> None:
    """`member`: None where it is simulated, and the first host does it all."""
    secret = bytes.fromhex(os.environ[SECRET_VARIABLE])
    sights, drop_peer = (member.sights, member.drop_peer) if member else (list, lambda _life: None)
    report = await Report.begin(spec.member, spec.first_plane, spec.incarnation, secret, sights, _end, drop_peer)
    if member:
        member.listen(report.stage)
    _say_ready(pipe, facts)
    await asyncio.Event().wait()


def _say_ready(pipe: socket.socket, facts: dict[str, Any]) -> None:
    pipe.sendall(json.dumps({"event": "ready"} | facts).encode() + b"\n")


def _end(why: str) -> NoReturn:
    """Half an engine is none. The warden ends what is left of it here."""
    log.error("%s", why)
    sys.stderr.flush()
    os._exit(FOLLOWED)


if __name__ == "__main__":  # spawned, not forked: its arguments are the spec's path and the pipe's number
    run(decode_spec(Path(sys.argv[1]).read_bytes()), socket.socket(fileno=int(sys.argv[2])))
