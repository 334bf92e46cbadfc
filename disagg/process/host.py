"""The engine host: one process that holds one engine incarnation, or a part of one, and serves the request plane.

Way:   reaper -> [host] -> engine; frontends connect to its plane server
In:    a HostSpec; out: Ready, a JSON line on the actor's pipe, then service until it is killed
Fails: whatever stops it ends up in the engine's log; the reaper tells the actor the exit status and the last lines
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import socket
import sys
import tempfile
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import NoReturn

import msgspec

from disagg.freed_memory import keep_freed_memory
from disagg.host_spec import FOLLOWED, LIFE_VARIABLE, HostSpec, decode_spec, plane_secret
from disagg.kv_events.book import KvBook
from disagg.plane.engine import Engine, EngineFacts
from disagg.plane.server import PlaneServer
from disagg.process.handover import Spares
from disagg.process.members import Members, Report
from disagg.process.news import Ready, encode_news
from disagg.process.text_service import text_service
from disagg.process.tokenizer_check import check_tokenizer
from disagg.role_table import ROLES
from disagg.roles import Role
from disagg.sglang.children import expected_children, seen_children
from disagg.sglang.engine import SGLangEngine, SGLangMember
from disagg.start_phases import Phases, told
from disagg.visible import LogLines

log = logging.getLogger(__name__)

HELD_S = 0.1  # a scheduler is not read while the first host does not keep up


def run(spec: HostSpec, pipe: socket.socket, spares: Spares | None = None) -> None:
    """Returns when the engine has ended. `spares`: children that this process kept ready; None: it was not a
    standby."""
    phases = Phases(spec.asked_s)
    phases.end("process")
    keep_freed_memory()
    os.environ.update(spec.environment)
    plane_secret()  # before anything is started: SGLang's processes, and what a model brings, do without
    os.environ[LIFE_VARIABLE] = spec.life
    os.environ["TMPDIR"] = tempfile.tempdir = spec.scratch
    random.seed()  # a fork has its zygote's state
    lines = logging.StreamHandler()
    lines.setFormatter(LogLines("[%(asctime)s] %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[lines])
    if spec.is_simulated:
        asyncio.run(_simulate(spec, pipe, phases))
        return
    if spares is None:
        # The children import SGLang while this process does; one after the other would take twice as long.
        spares = Spares(() if spec.fork else expected_children(spec.arguments, metadata.version("sglang")))
        if not spec.fork:
            spares.install()  # also notes which children are started; the next standby keeps spares for those
    run_part = _run_member if spec.member else _run_first
    run_part(spec, pipe, phases, spares)


def _run_first(spec: HostSpec, pipe: socket.socket, phases: Phases, spares: Spares) -> None:
    kv = _kv_book(spec)
    members = Members(spec.members, lambda *stage: engine.on_stage(*stage), _end, kv=kv)
    engine = SGLangEngine(
        spec.arguments,
        fork=spec.fork,
        scratch=Path(spec.scratch),
        other_samples=members.samples,
        phases=phases,
        tells_cache=kv is not None,
    )
    facts = engine.start()
    if kv is not None:
        _hear_caches(engine, kv)
    if spec.incarnation == 1 and ROLES[Role(spec.role)].reads_prompts:
        check_tokenizer(spec.arguments)
        phases.end("tokenizer")
    engine.loop.run_until_complete(_serve(engine, facts, spec, pipe, members, phases, spares, kv))


def _run_member(spec: HostSpec, pipe: socket.socket, phases: Phases, spares: Spares) -> None:
    scratch, tells_cache = Path(spec.scratch), bool(spec.block_tokens)
    member = SGLangMember(spec.arguments, fork=spec.fork, scratch=scratch, phases=phases, tells_cache=tells_cache)
    ready = Ready(start_s=phases.seconds, **msgspec.structs.asdict(member.start()))
    member.loop.run_until_complete(_report(spec, pipe, _with_spares(ready, spares), member))


def _kv_book(spec: HostSpec) -> KvBook | None:
    return KvBook(plane_secret(), spec.block_tokens) if spec.block_tokens else None


def _hear_caches(engine: SGLangEngine, kv: KvBook) -> None:
    caches = engine.caches
    assert caches is not None
    kv.adapter_of, engine.on_unloaded = engine.adapter_of, kv.begin_anew
    caches.listen(engine.loop, lambda dp_rank, telling: kv.hear(dp_rank, telling, partial(caches.again, dp_rank)))


def _with_spares(ready: Ready, spares: Spares) -> Ready:
    """And what spares for the processes that the engine has started would be, or why there can be none."""
    if left := spares.dismiss():
        log.warning("%d spare processes were not used", left)
    if spares.unfit:
        return msgspec.structs.replace(ready, unfit=spares.unfit)
    schedulers = ready.pids.get("schedulers", [])
    wanted = seen_children(spares.started, len(schedulers) if isinstance(schedulers, list) else 0)
    return msgspec.structs.replace(ready, spares=tuple(wanted))


async def _simulate(spec: HostSpec, pipe: socket.socket, phases: Phases) -> None:
    from disagg.simulated_engine.arguments import simulated_engine

    if spec.member:
        await _report(spec, pipe, Ready(pids={"host": os.getpid()}), None)
        return
    kv = _kv_book(spec)
    engine = simulated_engine(spec, kv=kv)
    facts = engine.start()
    await engine.open()
    phases.end("engine")
    members = Members(spec.members, lambda _leg_id, _stage, _cached: None, _end)
    await _serve(engine, facts, spec, pipe, members, phases, None, kv)


async def _serve(
    engine: Engine,
    facts: EngineFacts,
    spec: HostSpec,
    pipe: socket.socket,
    members: Members,
    phases: Phases,
    spares: Spares | None,
    kv: KvBook | None,
) -> None:
    others = members if spec.members > 1 else None
    embeds = ROLES[Role(spec.role)].embeds
    texts = None if spec.text is None else await text_service(spec.text)
    server = PlaneServer(
        engine, facts, spec.incarnation, plane_secret(), others=others, embeds=embeds, texts=texts, kv=kv
    )
    port = await server.start(spec.plane_host, spec.plane_port)
    if others is not None:
        await others.joined()
    phases.end("plane")
    log.info("%s is up after %s", spec.place, told(phases.seconds))
    said = msgspec.structs.asdict(facts) | {"pids": {"host": os.getpid()} | facts.pids}
    ready = Ready(plane=f"{spec.plane_host}:{port}", start_s=phases.seconds, **said)
    _say_ready(pipe, _with_spares(ready, spares) if spares else ready)
    await asyncio.Event().wait()


async def _report(spec: HostSpec, pipe: socket.socket, ready: Ready, member: SGLangMember | None) -> None:
    """`member`: None where it is simulated, and the first host does it all."""
    samples, drop_peer = (member.samples, member.drop_peer) if member else (list, lambda _life: None)
    caches = member.caches if member else None
    again = caches.again if caches else lambda _dp_rank: None
    report = await Report.begin(
        spec.member, spec.first_plane, spec.incarnation, plane_secret(), samples, _end, drop_peer, again
    )
    if member:
        member.listen(report.stage)
    if member and caches:

        def hand_on(dp_rank: int, telling: bytes) -> None:
            if not report.cached(dp_rank, telling):
                caches.hold(dp_rank, HELD_S)

        caches.listen(member.loop, hand_on)
    _say_ready(pipe, ready)
    await asyncio.Event().wait()


def _say_ready(pipe: socket.socket, ready: Ready) -> None:
    pipe.sendall(encode_news(ready) + b"\n")


def _end(why: str) -> NoReturn:
    """Half an engine is none. The reaper ends what is left of it here."""
    log.error("%s", why)
    sys.stderr.flush()
    os._exit(FOLLOWED)


if __name__ == "__main__":  # spawned, not forked: its arguments are the spec's path and the pipe's number
    run(decode_spec(Path(sys.argv[1]).read_bytes()), socket.socket(fileno=int(sys.argv[2])))
