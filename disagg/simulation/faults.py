"""The faults of a soak: their kinds, each aimed at a request in one phase.

Way:   soak -> [Faults.strike] -> an engine, its host, a link, or the client of that request
Out:   how long the engines around it may be out of order: what fails meanwhile may have a reason
Owns:  the list of what makes no sense, with reasons
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import Enum
from random import Random

from disagg.coordinator.phases import LIVE, Phase
from disagg.plane import messages as m
from disagg.roles import Role
from disagg.simulation.hosts import SimulatedHost
from disagg.simulation.network import Link
from disagg.simulation.world import SimulatedDeployment, Stream


class Fault(Enum):
    CRASH = "crash"
    FREEZE = "freeze"
    HOST_FREEZE = "host freeze"
    DEAD_SCHEDULER = "dead scheduler"
    PARTITION = "partition"
    SLOW = "slow"
    KV_EXHAUSTED = "KV exhausted"
    ENDLESS_TRANSFER = "endless transfer"
    BROKEN_LANE = "broken lane"
    LOST_ABORT = "lost abort"
    CUT = "cut connection"
    HALF_OPEN = "half-open"
    DELAY = "late frames"
    DUPLICATE = "duplicate frame"
    STALE = "stale frame"
    DISCONNECT = "client leaves"
    CANCEL = "cancel"


PHASES = tuple(phase for phase in Phase if phase in LIVE)
KILLERS = {
    Fault.CRASH,
    Fault.FREEZE,
    Fault.HOST_FREEZE,
    Fault.DEAD_SCHEDULER,
    Fault.PARTITION,
    Fault.BROKEN_LANE,
}
OF_CLIENTS = {Fault.DISCONNECT, Fault.CANCEL, Fault.LOST_ABORT}

_NO_FRAME = "no frame of the request has been sent yet"
_NO_LEG = "there is no leg yet whose abort could be lost"
_OVER = "its transfer is over"
SENSELESS: dict[tuple[Fault, Phase], str] = (
    {
        (Fault.ENDLESS_TRANSFER, Phase.DECODING): _OVER,
        (Fault.ENDLESS_TRANSFER, Phase.MIGRATING): "it has no pair: the next transfer is another phase's",
        (Fault.LOST_ABORT, Phase.QUEUED): _NO_LEG,
        (Fault.LOST_ABORT, Phase.MIGRATING): "the aborts of its old legs have been sent, those of new ones are not due",
    }
    | {
        (Fault.BROKEN_LANE, phase): "its own transfer is to be over: canaries have to find it, not this request"
        for phase in PHASES
        if phase is not Phase.DECODING
    }
    | {
        (fault, phase): _NO_FRAME
        for fault in (Fault.DUPLICATE, Fault.STALE)
        for phase in (Phase.QUEUED, Phase.RESERVED)
    }
)
CELLS = [(fault, phase) for fault in Fault for phase in PHASES if (fault, phase) not in SENSELESS]

FOR_EVER = float("inf")
SLOW_FACTOR, SLOW_S = 15.0, 2.0
EXHAUSTED_S = 8.0  # longer than the bootstrap deadline of a soak
PARTITION_S = 2.5  # the controller kills what does not answer for longer
HALF_OPEN_S = 8.0
DELAY_S, DELAY_LASTS_S = 0.7, 3.0
SETTLE_S = 4.0  # after a fault is over: its requests have been served, connections are made again


class Faults:
    """`on_disturbed(engine id, seconds)`: for so long that engine may fail requests."""

    def __init__(self, world: SimulatedDeployment, on_disturbed: Callable[[str, float], None]) -> None:
        self._world, self._on_disturbed = world, on_disturbed
        self._loop = asyncio.get_running_loop()

    def strike(self, fault: Fault, stream: Stream, random: Random) -> None:
        if fault is Fault.DISCONNECT:
            stream.task.cancel()
            return
        if fault is Fault.CANCEL:
            if not stream.frontend.coordinator.cancel(stream.request.id):
                raise AssertionError(f"a cancel in {stream.request.phase.name} found no request")
            return
        host = self._victim(fault, stream, random)
        self._on_disturbed(host.engine_id, self._harm(fault, stream, host, random))

    def _victim(self, fault: Fault, stream: Stream, random: Random) -> SimulatedHost:
        """An engine of the request's pair, or any while it has none."""
        roles = [Role.PREFILL, Role.DECODE]
        if fault in (Fault.ENDLESS_TRANSFER, Fault.BROKEN_LANE):
            roles = [Role.PREFILL]
        if fault in (Fault.DUPLICATE, Fault.STALE):
            roles = [Role.DECODE]
        role = random.choice(roles)
        if stream.request.facts.decode is not None:
            return self._world.host_of(stream, role)
        return random.choice([host for host in self._world.hosts.values() if host.role is role])

    def _harm(self, fault: Fault, stream: Stream, host: SimulatedHost, random: Random) -> float:
        """Applies the fault; returns for how many seconds it may disturb engines."""
        engine, later = host.engine, self._loop.call_later
        match fault:
            case Fault.CRASH:
                host.kill()
            case Fault.FREEZE:
                engine.freeze()
            case Fault.HOST_FREEZE:
                host.freeze()
            case Fault.DEAD_SCHEDULER:
                engine.kill_scheduler(random.randrange(len(engine.ranks)))
            case Fault.PARTITION:
                self._world.network.silence(host.name)
                later(PARTITION_S, self._world.network.heal, host.name)
                return PARTITION_S + SETTLE_S
            case Fault.SLOW:
                engine.slow(SLOW_FACTOR)
                later(SLOW_S, engine.slow, 1.0)
                return SLOW_S + 2 * SETTLE_S
            case Fault.KV_EXHAUSTED:
                engine.exhaust_kv()
                later(EXHAUSTED_S, engine.exhaust_kv, False)
                return EXHAUSTED_S + SETTLE_S
            case Fault.ENDLESS_TRANSFER:
                engine.lose_transfers()
                return 2 * SETTLE_S
            case Fault.BROKEN_LANE:
                engine.lose_transfers(1 << 60)
            case Fault.LOST_ABORT:
                engine.lose_aborts()
                stream.task.cancel()
                return 0.0
            case _:
                return self._harm_link(fault, stream, host, random)
        return FOR_EVER

    def _harm_link(self, fault: Fault, stream: Stream, host: SimulatedHost, random: Random) -> float:
        """The connection between the request's frontend and an engine; none there now: nothing to harm."""
        hosts = stream.frontend.name, host.name
        link = next((each for each in self._world.network.links.values() if each.hosts == hosts), None)
        if link is None:
            return 0.0
        match fault:
            case Fault.CUT:
                link.cut("Connection reset by peer")
            case Fault.HALF_OPEN:
                direction = random.randrange(2)
                link.mute(direction)
                self._loop.call_later(HALF_OPEN_S, link.mute, direction, False)
                return HALF_OPEN_S + SETTLE_S
            case Fault.DELAY:
                link.delay_s = DELAY_S
                self._loop.call_later(DELAY_LASTS_S, setattr, link, "delay_s", 0.0)
                return DELAY_LASTS_S + SETTLE_S
            case Fault.DUPLICATE:
                direction = random.randrange(2)
                for frame in link.frames(direction):
                    link.carry(direction, frame)
            case Fault.STALE:
                self._send_stale(link, stream, host)
                return 0.0  # it must not be felt at all
        return SETTLE_S

    def _send_stale(self, link: Link, stream: Stream, host: SimulatedHost) -> None:
        """What an earlier incarnation said of a leg with this number, at just the offset that would be believed."""
        attempt = stream.frontend.coordinator.attempts.get(stream.request.id)
        number, offset = (attempt.decode.number, attempt.decode.received) if attempt else (1, 0)
        body = m.encode(m.Step(host.incarnation - 1, [m.Delta(number, offset, [7, 7])], []))
        link.carry(1, len(body).to_bytes(4, "little") + body)
