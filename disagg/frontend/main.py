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
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgspec
import uvloop

from disagg.adapters import Served
from disagg.coordinator.coordinator import Coordinator
from disagg.errors import StartError
from disagg.freed_memory import keep_freed_memory
from disagg.frontend.app import Frontend
from disagg.frontend.engine_tokenizer import EngineTokenizer
from disagg.frontend.http1 import Limits, Refusals
from disagg.frontend.key_limits import Meters
from disagg.frontend.keys import Keys
from disagg.frontend.open_files import raise_limit
from disagg.frontend.origins import Origins
from disagg.frontend.page.feed import Feed
from disagg.frontend.peers import Peers, PeerServer
from disagg.frontend.service import Service
from disagg.frontend.spec import LISTENING, FrontendSpec, ModelSpec
from disagg.frontend.tls import Tls
from disagg.frontend.tokenization import Tokenization
from disagg.frontend.whole import AllModels
from disagg.host_spec import SECRET_VARIABLE
from disagg.kv_events.blocks import BlockHasher
from disagg.registry.control import ControlClient
from disagg.registry.follower import Follower
from disagg.registry.of_model import of_model
from disagg.registry.served import RemoteRegistry
from disagg.registry.shared import open_store
from disagg.registry.store import StoreLost
from disagg.routing.connections import Connections
from disagg.routing.policy import Surroundings, load_policy
from disagg.routing.router import Router
from disagg.telemetry.stderr_log import log_to_stderr
from disagg.telemetry.traces.tracer import Tracer

# Between two looks of the garbage collector. A request makes a hundred objects and leaves no cycle behind (a test holds
# that): Python's 700 would be a look at all requests under way at every seventh one.
YOUNG_OBJECTS = 10_000
HERE = "127.0.0.1"  # all frontends of a deployment are on the node of its driver


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
    secret = bytes.fromhex(os.environ[SECRET_VARIABLE])
    # Before the connection, which has to prove its secret in time.
    own = [None if model.tokenization == "engine" else _own_tokenizer(spec, model) for model in spec.models]
    registry = _registry(spec, secret)
    await registry.connect()
    tls = Tls(spec.tls) if spec.tls is not None else None
    ours = _Ours(Refusals(), _tracer(spec), Meters(spec.limited_keys))
    parts = [_part(spec, model, secret) for model in spec.models]
    feed = _one_feed(parts) if len(parts) > 1 else None
    control = ControlClient(lambda: spec.control or registry.control, secret)
    services = [_service(spec, part, control, ours, feed) for part in parts]
    first, *more = [
        (service, (given or _asking(spec, part))(partial(getattr, service, "served")))
        for service, part, given in zip(services, parts, own, strict=True)
    ]
    headers = [(b"x-disagg-simulated", b"true")] if spec.simulated else []
    frontend = Frontend(
        *first,
        body_limit_bytes=spec.body_limit_bytes,
        limits=Limits(connections=spec.connections_max, held_bytes=spec.held_limit_bytes),
        refusals=ours.refusals,
        headers=headers,
        keys=Keys(
            [*spec.api_keys, *(each.key for each in spec.limited_keys)],
            spec.admin_keys,
            open_metrics=spec.open_metrics,
        ),
        meters=ours.meters,
        origins=Origins(spec.origins, spec.origins_age_s),
        peers=Peers(spec.number, secret, lambda: registry.frontends) if spec.has_peers else None,
        more=more,
        whole=AllModels(services) if more else None,
        tracer=ours.tracer,
    )
    peer_server = PeerServer(secret, frontend.own)
    peer = f" {HERE}:{await peer_server.start(HERE)}" if spec.has_peers else ""
    await frontend.start(spec.host, spec.port, shares_port=spec.has_peers, tls=tls)
    await frontend.start_reader()
    gc.collect()
    gc.freeze()  # what is there by now stays: a full collection would look through it, and stop every stream for 5 ms
    gc.set_threshold(YOUNG_OBJECTS)
    sys.stdout.buffer.write(f"{LISTENING}{peer}\n".encode())
    sys.stdout.flush()
    following = [
        asyncio.create_task(
            part.connections.follow(of_model(registry.watch(), part.model.group)), name="follow the registry"
        )
        for part in parts
    ]
    for task in following:
        task.add_done_callback(lambda _: over.set())
    beating = services if spec.says_what_goes_on else []
    pulses = [asyncio.create_task(service.pulse.beat(), name="say what goes on") for service in beating]
    await over.wait()
    for pulse in pulses:
        pulse.cancel()
    await frontend.stop(spec.stop_s)
    await peer_server.close()
    if ours.tracer is not None:
        await asyncio.to_thread(ours.tracer.stop)
    for task in following:
        task.cancel()
    for ended in await asyncio.gather(*following, return_exceptions=True):
        if isinstance(ended, Exception):
            raise ended


class _Ours(NamedTuple):
    """Of this process, whichever the models are."""

    refusals: Refusals
    tracer: Tracer | None
    meters: Meters


class _Part(NamedTuple):
    """Of one model: its engines, and who gives them requests."""

    model: ModelSpec
    connections: Connections
    router: Router
    coordinator: Coordinator


def _part(spec: FrontendSpec, model: ModelSpec, secret: bytes) -> _Part:
    connections = Connections(secret, block_tokens=model.block_tokens, kv_events=model.kv_events)
    hasher = BlockHasher(secret, model.block_tokens) if model.block_tokens else None
    router = Router(connections, load_policy(spec.policy, Surroundings(prior=model.prior)), hasher)
    return _Part(model, connections, router, Coordinator(router, spec.limits))


def _service(spec: FrontendSpec, part: _Part, control: ControlClient, ours: _Ours, feed: Feed | None) -> Service:
    return Service(
        model_name=part.model.name,
        router=part.router,
        coordinator=part.coordinator,
        control=control,
        number=spec.number,
        refusals=ours.refusals,
        generates=part.model.generates,
        embeds=part.model.embeds,
        group=part.model.group,
        feed=feed,
        tracer=ours.tracer,
        metric_aliases=spec.metric_aliases,
        meters=ours.meters,
    )


def _one_feed(parts: Sequence[_Part]) -> Feed:
    """Of several models."""
    names, (first, *more) = ", ".join(part.model.name for part in parts), parts
    others = [(part.coordinator, part.connections) for part in more]
    return Feed(names, first.coordinator, first.connections, more=others)


def _registry(spec: FrontendSpec, secret: bytes) -> Follower:
    if spec.shared is None:
        return RemoteRegistry(spec.registry, secret)
    return Follower(open_store(spec.shared.at), spec.shared.keys)


def _asking(spec: FrontendSpec, part: _Part) -> Callable[[Callable[[], Served]], Tokenization]:
    """As `_own_tokenizer`, where the hosts have it."""
    parsers = part.model.tool_call_parser, part.model.reasoning_parser
    return lambda served: EngineTokenizer(part.connections, spec.limits, served, *parsers)


def _tracer(spec: FrontendSpec) -> Tracer | None:
    """Imported only where traces are on: OpenTelemetry takes memory, and a moment."""
    traces = spec.traces
    if traces is None:
        return None
    from disagg.telemetry.traces.otlp import exporter
    from disagg.telemetry.traces.sender import Sender

    export = exporter(traces.endpoint, traces.headers, spec.number, traces.service)
    sender = Sender(spec.models[0].name, export)
    sender.start()
    return Tracer(sender, traces.sample_ratio)


def _own_tokenizer(spec: FrontendSpec, model: ModelSpec) -> Callable[[Callable[[], Served]], Tokenization]:
    """All of it but what may be named. Imported only where it is used: elsewhere a frontend needs none of the
    tokenizer's libraries."""
    from disagg.frontend.own_tokenizer import OwnTokenizer, parsing_of
    from disagg.tokenizer.codec import load_codec

    codec = load_codec(Path(model.path), model.overrides)
    parsing = parsing_of(model.tool_call_parser, model.reasoning_parser, codec)
    return lambda served: OwnTokenizer(codec, served, parsing, refuses_unknown=spec.refuses_unknown)


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
