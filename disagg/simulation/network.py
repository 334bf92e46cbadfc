"""A network in memory: hosts, connections between them, latency, and everything that can go wrong on a wire.

Way:   PlaneClient, PlaneServer, simulated engines -> SimNetwork.at(host) -> [transports] -> the other end's protocol
In:    writes; out: `data_received` after a seeded latency, in order, one call a write
Owns:  the live links, so that a host's death ends all of its own
Why:   each link draws from a generator of its own, so that the order in which two links are used changes neither
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from disagg.plane.network import Listener, Network

FIRST_PORT = 20_000
KEPT_FRAMES = 4  # of each direction, to be sent again by a fault

_Parcel = tuple[float, bytes | None]  # due at (virtual seconds), and bytes or the end of the connection
OnDelivery = Callable[["Link", int, int], None]  # link, direction, bytes


class SimNetwork:
    def __init__(self, seed: int, latency_s: tuple[float, float] = (0.0001, 0.0005)) -> None:
        self._seed, self.latency_s = seed, latency_s
        self._listeners: dict[tuple[str, int], Callable[[], asyncio.Protocol]] = {}
        self._silent_hosts: set[str] = set()
        self._link_count = 0
        self._next_port = FIRST_PORT
        self.links: dict[int, Link] = {}
        self.on_delivery: OnDelivery | None = None

    def at(self, host: str) -> Network:
        """The network as `host` sees it."""
        return _HostNetwork(self, host)

    def links_of(self, host: str) -> list[Link]:
        return [link for link in self.links.values() if host in link.hosts]

    def take_away(self, host: str) -> None:
        """Ends the host's listeners and all its connections at once, as its process's death would."""
        for address in [address for address in self._listeners if address[0] == host]:
            del self._listeners[address]
        for link in self.links_of(host):
            link.cut("Connection reset by peer")

    def silence(self, host: str) -> None:
        """From now on nothing reaches the host or comes from it, and no connection ends for that."""
        self._silent_hosts.add(host)

    def heal(self, host: str) -> None:
        """What could not be delivered is sent again, as TCP does, unless its connection was given up meanwhile."""
        self._silent_hosts.discard(host)
        for link in self.links_of(host):
            link.go_on()

    def is_silent(self, hosts: tuple[str, str]) -> bool:
        return bool(self._silent_hosts) and not self._silent_hosts.isdisjoint(hosts)

    async def connect(self, make: Callable[[], asyncio.Protocol], source: str, host: str, port: int) -> None:
        self._link_count = number = self._link_count + 1
        random = Random(self._seed << 32 | number)
        await asyncio.sleep(random.uniform(*self.latency_s) * 2)
        if self.is_silent((source, host)):
            await asyncio.get_running_loop().create_future()  # for ever: a connect without a deadline is a bug
        accept = self._listeners.get((host, port))
        if accept is None:
            raise ConnectionRefusedError(f"nobody listens on {host}:{port}")
        link = self.links[number] = Link(self, number, (source, host), port, random)
        link.join(make(), accept())

    def listen(self, make: Callable[[], asyncio.Protocol], host: str, port: int) -> Listener:
        if not port:
            self._next_port += 1
            port = self._next_port
        if (host, port) in self._listeners:
            raise OSError(f"{host}:{port} is taken")
        self._listeners[host, port] = make
        return _SimListener(self._listeners, host, port)


@dataclass(frozen=True, slots=True)
class _HostNetwork:
    network: SimNetwork
    host: str

    async def connect(self, make: Callable[[], asyncio.Protocol], host: str, port: int) -> None:
        await self.network.connect(make, self.host, host, port)

    async def listen(self, make: Callable[[], asyncio.Protocol], host: str, port: int = 0) -> Listener:
        return self.network.listen(make, host, port)


@dataclass(frozen=True, slots=True)
class _SimListener:
    listeners: dict[tuple[str, int], Any]
    host: str
    port: int

    def close(self) -> None:
        self.listeners.pop((self.host, self.port), None)


class Link:
    """One connection. Direction 0 is from the host that connected to the one that listened, direction 1 back."""

    def __init__(self, network: SimNetwork, number: int, hosts: tuple[str, str], port: int, random: Random) -> None:
        self.network, self.number, self.hosts, self.port, self._random = network, number, hosts, port, random
        self._mute = [False, False]
        self.delay_s = 0.0
        self._loop = asyncio.get_running_loop()
        self._ends = (_End(self, 0), _End(self, 1))
        self._on_the_way: tuple[deque[_Parcel], deque[_Parcel]] = (deque(), deque())
        self._last_due_s = [0.0, 0.0]
        self._timers: list[asyncio.Handle | None] = [None, None]
        self._frames: tuple[deque[bytes], deque[bytes]] = (deque(maxlen=KEPT_FRAMES), deque(maxlen=KEPT_FRAMES))

    def join(self, connecting: asyncio.Protocol, accepting: asyncio.Protocol) -> None:
        self._ends[0].protocol, self._ends[1].protocol = connecting, accepting
        connecting.connection_made(self._ends[0])
        accepting.connection_made(self._ends[1])

    @property
    def is_open(self) -> bool:
        return self._ends[0].is_open and self._ends[1].is_open

    def cut(self, why: str = "") -> None:
        """Both ends learn of it at once; what was on the way is lost."""
        for side in (0, 1):
            self._lose(side, ConnectionResetError(why) if why else None)

    def close(self, side: int) -> None:
        """This side is done; the other learns of it when the last bytes have arrived, if anything arrives at all."""
        if self._ends[side].is_open:
            self._lose(side, None)
            self._send(side, None)

    def mute(self, direction: int, is_mute: bool = True) -> None:
        """Bytes of this direction do not arrive, and nobody is told: a half-open connection."""
        self._mute[direction] = is_mute
        self.go_on()

    def go_on(self) -> None:
        for direction in (0, 1):
            if self._on_the_way[direction] and self._timers[direction] is None:
                self._timers[direction] = self._loop.call_soon(self._deliver, direction)

    def frames(self, direction: int) -> list[bytes]:
        """The last frames that went this way, each with its length in front."""
        return list(self._frames[direction])

    def carry(self, direction: int, data: bytes) -> None:
        """What a side writes; or, from a fault, a frame that it does not write now: one of old, or one once more."""
        if not self._ends[1 - direction].is_open:
            self._send(1 - direction, None)  # the other end's machine answers: no such connection
            return
        if len(data) > 4 and int.from_bytes(data[:4], "little") == len(data) - 4:  # a frame, not a handshake
            self._frames[direction].append(data)
        self._send(direction, data)

    def _send(self, direction: int, parcel: bytes | None) -> None:
        low_s, high_s = self.network.latency_s
        due_s = self._loop.time() + low_s + self._random.random() * (high_s - low_s) + self.delay_s
        due_s = self._last_due_s[direction] = max(due_s, self._last_due_s[direction])
        self._on_the_way[direction].append((due_s, parcel))
        if self._timers[direction] is None:
            self._timers[direction] = self._loop.call_at(due_s, self._deliver, direction)

    def _deliver(self, direction: int) -> None:
        queue, side = self._on_the_way[direction], 1 - direction
        end, now_s = self._ends[side], self._loop.time() + 1e-9
        self._timers[direction] = None
        while queue and queue[0][0] <= now_s and end.is_open:
            if self._mute[direction] or self.network.is_silent(self.hosts):
                return  # until it heals
            _, parcel = queue.popleft()
            if parcel is None:
                self._lose(side, None)
                return
            if self.network.on_delivery is not None:
                self.network.on_delivery(self, direction, len(parcel))
            end.protocol.data_received(parcel)
        if end.is_open and queue and self._timers[direction] is None:
            self._timers[direction] = self._loop.call_at(queue[0][0], self._deliver, direction)

    def _lose(self, side: int, error: Exception | None) -> None:
        end = self._ends[side]
        if not end.is_open:
            return
        end.is_open = False
        self._on_the_way[1 - side].clear()
        timer = self._timers[1 - side]
        if timer is not None:
            timer.cancel()
        self._loop.call_soon(end.protocol.connection_lost, error)
        if not self._ends[1 - side].is_open:
            del self.network.links[self.number]


class _End(asyncio.Transport):
    """What one side writes to."""

    protocol: asyncio.Protocol

    def __init__(self, link: Link, side: int) -> None:
        super().__init__()
        self._link, self._side = link, side
        self.is_open = True

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self.is_open:
            self._link.carry(self._side, bytes(data))

    def is_closing(self) -> bool:
        return not self.is_open

    def abort(self) -> None:
        self._link.close(self._side)

    def close(self) -> None:
        self._link.close(self._side)

    def get_write_buffer_size(self) -> int:
        return 0

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return (self._link.hosts[1 - self._side], self._link.port) if name == "peername" else default
