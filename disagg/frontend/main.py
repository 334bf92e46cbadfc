"""One frontend process: HTTP on one side, engines on the other.

Way:   client -> [HTTP app -> Service -> Coordinator, of each model its own] -> engine hosts
In:    a FrontendSpec as the first line of standard input; the plane's secret in the environment
Fails: it ends when its standard input closes, or the controller that serves its registry is gone: the deployment is
       over then. A registry in a store may be away for as long as it likes

Usage: python -m disagg.frontend.main   (started by disagg.cluster.frontend_process)
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys

import msgspec
import uvloop

from disagg.errors import StartError
from disagg.freed_memory import keep_freed_memory
from disagg.frontend.app import Frontend
from disagg.frontend.http1 import Limits, Refusals
from disagg.frontend.key_limits import Meters
from disagg.frontend.key_sets import KeyFile, KeySet
from disagg.frontend.keys import Keys
from disagg.frontend.one_model import OneModel, Ours, own_tokens
from disagg.frontend.open_files import raise_limit
from disagg.frontend.origins import Origins
from disagg.frontend.peers import Peers, PeerServer
from disagg.frontend.roster import Roster
from disagg.frontend.spec import LISTENING, FrontendSpec
from disagg.frontend.tls import Tls
from disagg.frontend.whole import AllModels
from disagg.host_spec import plane_secret
from disagg.registry.control import ControlClient
from disagg.registry.follower import Follower
from disagg.registry.served import RemoteRegistry
from disagg.registry.shared import open_store
from disagg.registry.store import StoreLost
from disagg.telemetry.stderr_log import log_to_stderr
from disagg.telemetry.traces.tracer import Tracer

# Between two looks of the garbage collector. A request makes a hundred objects and leaves no cycle behind (a test holds
# that): Python's 700 would be a look at all requests under way at every seventh one.
YOUNG_OBJECTS = 10_000


async def serve(spec: FrontendSpec) -> None:
    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, over.set)

    def read_input() -> None:
        if not os.read(0, 4096):
            loop.remove_reader(0)  # it would be readable for ever
            over.set()

    loop.add_reader(0, read_input)

    raise_limit()
    secret = plane_secret()
    # Before the connection, which has to prove its secret in time.
    own = [own_tokens(spec, model) for model in spec.models]
    registry = _registry(spec, secret)
    await registry.connect()
    tls = Tls(spec.tls) if spec.tls is not None else None
    control, meters = ControlClient(lambda: spec.control or registry.control, secret), Meters(spec.limited_keys)
    ours = Ours(secret, control, Refusals(), _tracer(spec), meters)
    only = [OneModel(spec, model, ours, tokens) for model, tokens in zip(spec.models, own, strict=True)]
    roster = None if only else Roster(spec, registry, ours)
    first, *more = only if roster is None else await roster.begin()
    whole = AllModels([first.service, *(one.service for one in more)]) if roster is not None else None
    keys = Keys(open_metrics=spec.open_metrics)
    started = KeySet(spec.api_keys, spec.limited_keys, spec.admin_keys)
    keys.hold(*started)
    key_file = KeyFile(spec.keys_file, started, keys, meters) if spec.keys_file else None
    headers = [(b"x-disagg-simulated", b"true")] if spec.simulated else []
    frontend = Frontend(
        first.service,
        first.tokenization,
        body_limit_bytes=spec.body_limit_bytes,
        limits=Limits(connections=spec.connections_max, held_bytes=spec.held_limit_bytes),
        refusals=ours.refusals,
        headers=headers,
        keys=keys,
        meters=meters,
        origins=Origins(spec.origins, spec.origins_age_s),
        peers=Peers(spec.number, secret, lambda: registry.frontends) if spec.has_peers else None,
        more=[(one.service, one.tokenization) for one in more],
        whole=whole,
        tracer=ours.tracer,
    )
    peer_server = PeerServer(secret, frontend.own)
    peer = f" {spec.peer_host}:{await peer_server.start(spec.peer_host)}" if spec.has_peers else ""
    await frontend.start(spec.host, spec.port, shares_port=spec.shares_port, tls=tls)
    await frontend.start_reader()
    gc.collect()
    gc.freeze()  # what is there by now stays: a full collection would look through it, and stop every stream for 5 ms
    gc.set_threshold(YOUNG_OBJECTS)
    sys.stdout.buffer.write(f"{LISTENING}{peer}\n".encode())
    sys.stdout.flush()
    following: list[asyncio.Task[None]] = []
    if roster is not None and whole is not None:
        roster.join(frontend, whole)
        following.append(asyncio.create_task(roster.follow(over.set), name="follow the models"))
    if key_file is not None:
        following.append(asyncio.create_task(key_file.follow(), name="follow the file of keys"))
    for task in following:
        task.add_done_callback(lambda _: over.set())
    for one in only:
        one.follow(registry, over.set)
    await over.wait()
    await frontend.stop(spec.stop_s)
    await peer_server.close()
    if ours.tracer is not None:
        await asyncio.to_thread(ours.tracer.stop)
    for task in following:
        task.cancel()
    ended = await asyncio.gather(*following, return_exceptions=True)
    if roster is not None:
        await roster.close()
    for one in only:
        await one.close()
    for error in ended:
        if isinstance(error, Exception):
            raise error


def _registry(spec: FrontendSpec, secret: bytes) -> Follower:
    if spec.shared is None:
        return RemoteRegistry(spec.registry, secret)
    return Follower(open_store(spec.shared.at), spec.shared.keys)


def _tracer(spec: FrontendSpec) -> Tracer | None:
    """Imported only where traces are on: OpenTelemetry takes memory, and a moment."""
    traces = spec.traces
    if traces is None:
        return None
    from disagg.telemetry.traces.otlp import exporter
    from disagg.telemetry.traces.sender import Sender

    export = exporter(traces.endpoint, traces.headers, spec.number, traces.service)
    sender = Sender(", ".join(model.name for model in spec.models) or traces.service, export)
    sender.start()
    return Tracer(sender, traces.sample_ratio)


def main() -> None:
    keep_freed_memory()
    log_to_stderr("[%(asctime)s] %(name)s: %(message)s")
    line = b""
    while not line.endswith(b"\n"):  # unbuffered: what follows is watched for its end
        data = os.read(0, 1 << 16)
        if not data:
            raise SystemExit("no specification on standard input")
        line += data
    try:
        uvloop.run(serve(msgspec.json.decode(line, type=FrontendSpec)))
    except (StartError, StoreLost) as error:
        sys.stdout.write(f"{error.where}: {error.message}\n".replace("\n", " ").strip() + "\n")
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
