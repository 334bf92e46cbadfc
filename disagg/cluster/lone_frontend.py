"""`disagg frontend`: frontends of a deployment on a host where nothing else of it runs.

Way:   cli -> [serve_alone] -> the registry in a folder or in etcd, and processes (frontend_process.py), without Ray
In:    what the controller has published (frontend/published.py), and what it publishes later: then they start again
Owns:  its processes, and their keys in the registry, under a lease of its own
Fails: StartError, StoreLost before it serves: no such deployment, another secret, no model here, a port in use. Later
       it stays, whatever becomes of the store and of the controller, until a signal
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random

import msgspec

from disagg import surroundings
from disagg.cluster.course import Course
from disagg.cluster.frontend_process import START_S, FrontendProcess
from disagg.cluster.ports import hold
from disagg.config.addresses import is_loopback_host
from disagg.config.frontend import base_url
from disagg.errors import DisaggError, StartError
from disagg.frontend.on_host import OnHost, on_this_host
from disagg.frontend.published import Published, opened
from disagg.frontend.spec import FrontendSpec
from disagg.host_spec import SECRET_VARIABLE
from disagg.registry.announcer import Announcer
from disagg.registry.follower import Follower
from disagg.registry.keys import decode_controller
from disagg.registry.records import SealedSpec
from disagg.registry.sealed import Secret
from disagg.registry.shared import Shared, open_store
from disagg.registry.store import Store, StoreLost, pauses_s

log = logging.getLogger(__name__)

PUBLISHED_S = 5.0  # after its keys are there
HERE = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Wanted:
    shared: Shared
    secret: Secret
    count: int = 1
    peer_host: str = ""  # empty: this host's address on the way to the controller
    said: OnHost = field(default_factory=OnHost)


async def serve_alone(wanted: Wanted) -> None:
    """Until a signal: running answers end then, within the deployment's deadlines.stop_s. Before it serves, a signal
    ends the process. Raises StartError, StoreLost."""
    surroundings.refuse(os.environ)
    course = Course()
    with course.heeding():
        await _Alone(wanted, course).run()
    log.info("stopped")


class _Alone:
    def __init__(self, wanted: Wanted, course: Course) -> None:
        self._wanted, self._course = wanted, course
        self._store: Store = open_store(wanted.shared.at)
        self._follower = Follower(self._store, wanted.shared.keys)
        self._processes: dict[int, FrontendProcess] = {}  # by number
        self._taken: asyncio.Queue[int] = asyncio.Queue()
        self._renewing = asyncio.Lock()  # one process after the other, each with the number that is its own then

    async def run(self) -> None:
        """Until it is cancelled."""
        announcer: Announcer | None = None
        try:
            await self._refuse_unknown()
            await self._follower.connect()
            published = opened(await self._first_published(), self._wanted.secret)
            spec = await self._fitted(published)
            keys = self._wanted.shared.keys
            announcer = Announcer(self._store, keys, published.lease_s, self._taken.put_nowait, Random())
            with _held(spec):
                await self._start(spec, announcer)
                self._course.has_come_to_serve()
                self._tell(spec)
                await self._keep(spec, announcer)
        finally:
            await asyncio.gather(*(process.stop() for process in self._processes.values()))
            if announcer is not None:
                await announcer.end()
            await self._follower.close()

    async def _refuse_unknown(self) -> None:
        """At once, and not after the time that a controller has to tell everything."""
        keys = self._wanted.shared.keys
        entry = (await self._store.snapshot(keys.prefix)).entries.get(keys.controller)
        if entry is None:
            what = f"no deployment {keys.deployment} of namespace {keys.namespace} is there"
            raise StartError("registry", what, "see `disagg list`")
        controller = decode_controller(entry.value)
        host = controller.control.rpartition(":")[0].strip("[]")
        if host and is_loopback_host(host) and controller.host != socket.gethostname():
            what = f"the deployment is on a private Ray of {controller.host}, which only that host reaches"
            raise StartError("registry", what, "start it on a Ray cluster (ray.address)")

    async def _first_published(self) -> SealedSpec:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PUBLISHED_S):
                async for _ in self._follower.watch():
                    if self._follower.spec is not None:
                        return self._follower.spec
        what = "the deployment publishes nothing for frontends on other hosts"
        raise StartError("registry", what, "set security.secret of it, and start it again")

    async def _fitted(self, published: Published) -> FrontendSpec:
        wanted = self._wanted
        peer_host = wanted.peer_host or _address_towards(self._follower.control)
        several = wanted.count > 1
        return await asyncio.to_thread(
            on_this_host, published, wanted.said, wanted.shared, peer_host, shares_port=several
        )

    async def _start(self, spec: FrontendSpec, announcer: Announcer) -> None:
        environment = surroundings.of_our_processes(os.environ) | {SECRET_VARIABLE: self._wanted.secret.plane.hex()}
        for _ in range(self._wanted.count):
            number = await announcer.claim()
            own = msgspec.structs.replace(spec, number=number)
            self._processes[number] = FrontendProcess(own, environment, announcer)
        await asyncio.gather(*(process.start() for process in self._processes.values()))

    def _tell(self, spec: FrontendSpec) -> None:
        keys, url = self._wanted.shared.keys, base_url(spec.host, spec.port, is_tls=spec.tls is not None)
        numbers = ", ".join(map(str, self._processes))
        if not spec.models:  # of those that come and go any name may be one to come
            there = {str(record.spec["name"]) for record in self._follower.models.values()}
            for name in sorted(self._wanted.said.models.keys() - there):
                log.warning(
                    "--model %s: the deployment has no such model yet; it has %s", name, ", ".join(sorted(there))
                )
        log.info("serving %s/%s on %s as frontend %s", keys.namespace, keys.deployment, url, numbers)

    async def _keep(self, spec: FrontendSpec, announcer: Announcer) -> None:
        async with asyncio.TaskGroup() as tasks:
            for process in self._processes.values():
                tasks.create_task(process.keep_alive())
            tasks.create_task(announcer.run(), name="announce the frontends")
            tasks.create_task(self._take_other_numbers(announcer), name="take other numbers")
            tasks.create_task(self._heed_changes(spec), name="heed what is published")

    async def _heed_changes(self, spec: FrontendSpec) -> None:
        """What is published anew takes effect process by process, each after its answers have ended."""
        async for view in self._follower.watch():
            if view.changes.spec is None:
                continue
            try:
                new = await self._fitted(opened(view.changes.spec, self._wanted.secret))
            except DisaggError as error:
                log.error("the deployment has changed, and serving goes on as before: %s", error)
                continue
            if new == spec:
                continue
            spec = new
            log.info("the deployment has changed: frontends start again")
            for process in list(self._processes.values()):
                async with self._renewing:
                    await self._renew(process, msgspec.structs.replace(spec, number=process.spec.number))

    async def _take_other_numbers(self, announcer: Announcer) -> None:
        """While the store was away from here, another frontend has taken one of ours."""
        pauses = pauses_s(Random())
        while True:
            old = await self._taken.get()
            try:
                new = await announcer.claim()
            except StoreLost as error:
                log.warning("%s; frontend %d has no number of its own yet", error, old)
                self._taken.put_nowait(old)
                await asyncio.sleep(next(pauses))
                continue
            log.warning("another frontend is %d now: it starts again as %d", old, new)
            async with self._renewing:
                process = self._processes[new] = self._processes.pop(old)
                await self._renew(process, msgspec.structs.replace(process.spec, number=new))

    async def _renew(self, process: FrontendProcess, spec: FrontendSpec) -> None:
        """Returns when it listens, or does not in time."""
        await process.renew(spec)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.listens.wait(), START_S)


@contextlib.contextmanager
def _held(spec: FrontendSpec) -> Iterator[None]:
    """The port, for processes that are started again."""
    try:
        held = hold(spec.host, spec.port)
    except OSError as error:
        what = f"{spec.host}:{spec.port} cannot be bound here: {error.strerror}"
        raise StartError("frontend", what, "say --host and --port") from None
    with held:
        yield


def _address_towards(address: str) -> str:
    """This host's, as the controller at `address` (host:port) sees it. Nothing is sent."""
    host, _, port = address.rpartition(":")
    if not host:
        return HERE
    try:
        (family, *_, there), *_ = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_DGRAM)
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(there)
            return str(probe.getsockname()[0])
    except OSError:
        return HERE
