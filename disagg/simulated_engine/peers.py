"""The two sides of bootstrapping: a prefill engine's rooms, and a decode engine's view of one prefill engine.

Way:   decode rank -> [Peer] =PeerLink=> [BootstrapServer] -> prefill rank; KV and Released come back the same way
Owns:  the bootstrap address of a prefill engine and its rooms; a decode engine's connection to one such address
Fails: a prefill that cannot be reached, or whose heartbeats stay away, fails the legs that wait for it
"""

from __future__ import annotations

import asyncio

from disagg.plane.network import Listener, Network
from disagg.simulated_engine.leg import At
from disagg.simulated_engine.model import Model
from disagg.simulated_engine.peering import Allocated, Gone, Heartbeat, Hello, Landed, Message, PeerLink, Released
from disagg.simulated_engine.rank import RankLeg

CONNECT_TRIES, CONNECT_PAUSE_S, CONNECT_LIMIT_S = 15, 1.0, 2.0  # as SGLang's decode does
NO_TOPOLOGY = "Could not fetch prefill parallel info"
LOST = "Lost connection with prefill instance"


class BootstrapServer:
    """What a prefill engine has at its bootstrap address. Like SGLang's, it outlives dead schedulers behind it."""

    def __init__(self, model: Model, network: Network) -> None:
        self._model, self._network = model, network
        self._rooms: dict[int, RankLeg] = {}
        self._early: dict[int, PeerLink] = {}  # decode was quicker
        self._links: dict[PeerLink, None] = {}
        self._listener: Listener | None = None
        self._ready_at_s = 0.0

    async def listen(self, host: str, port: int) -> None:
        self._ready_at_s = asyncio.get_running_loop().time() + self._model.register_s
        self._listener = await self._network.listen(self._accept, host, port)

    def close(self) -> None:
        if self._listener is not None:
            self._listener.close()
        for link in list(self._links):
            link.close()

    @property
    def rooms_open(self) -> int:
        """Of live legs. As in SGLang (sglang #39428), what decode tells of a room that is over stays in `_early`."""
        return len(self._rooms)

    def meet(self, leg: RankLeg) -> None:
        """A prefill leg has reached its scheduler."""
        rank, room = leg.rank, leg.room
        other = self._rooms.get(room)
        if other is not None:
            # Two live requests in one room: one fails, the other waits for what will not come, until it is aborted.
            rank.end(leg, "error", "NIXL_ERR_INVALID_PARAM")
            if other.at in (At.BOOTSTRAPPING, At.WAITING):
                other.rank.stall(other)
            return
        if leg.is_fake or room == 0 or room % self._model.ranks != rank.index:
            rank.prefill_may_begin(leg)  # and will end as if all were well: nobody waits for it
            return
        self._rooms[room] = leg
        leg.link = self._early.pop(room, None)
        if leg.link is not None:
            rank.prefill_may_begin(leg)
        else:
            rank.later(leg, self._model.bootstrap_timeout_s, rank.timed_out, leg, At.BOOTSTRAPPING, "Bootstrapping")

    def forget(self, leg: RankLeg) -> None:
        if self._rooms.get(leg.room) is leg:
            del self._rooms[leg.room]

    def drop(self, life: str) -> None:
        for link in [link for link in self._links if link.life == life]:
            link.close()

    def _accept(self) -> PeerLink:
        link = PeerLink(self._received, self._lost, self._answer)
        self._links[link] = None
        return link

    def _answer(self, path: str) -> tuple[int, str]:
        if path.startswith("/health"):
            return 200, "OK"
        if asyncio.get_running_loop().time() < self._ready_at_s:
            return 503, "{}"
        return 200, f'{{"dp_size": {self._model.ranks}, "page_size": {self._model.page_size}}}'

    def _received(self, link: PeerLink, message: Message) -> None:
        match message:
            case Heartbeat():
                link.send(message)
            case Allocated(room):
                leg = self._rooms.get(room)
                if leg is None:
                    self._early[room] = link
                elif leg.link is None:
                    leg.link = link
                    leg.rank.do(leg.rank.prefill_may_begin, leg)
            case Gone(room):
                self._early.pop(room, None)
                leg = self._rooms.get(room)
                if leg is not None and leg.link is link:
                    leg.rank.do(leg.rank.decode_left, leg)
                if leg is None or not leg.rank.is_dead:
                    link.send(Released(room))

    def _lost(self, link: PeerLink) -> None:
        self._links.pop(link, None)
        self._early = {room: other for room, other in self._early.items() if other is not link}
        for leg in [leg for leg in self._rooms.values() if leg.link is link]:
            leg.rank.do(leg.rank.link_lost, leg)


class Peer:
    """One prefill engine, as a decode engine sees it: a bootstrap address."""

    def __init__(self, model: Model, life: str, network: Network, host: str, port: int) -> None:
        self._model, self._life, self._network, self._host, self._port = model, life, network, host, port
        self._loop = asyncio.get_running_loop()
        self._link: PeerLink | None = None
        self._legs: dict[int, RankLeg] = {}  # by room: those that wait for this prefill
        self._connecting: asyncio.Task[None] | None = None
        self._beating: asyncio.TimerHandle | None = None
        self._beats_missed = 0

    @property
    def is_open(self) -> bool:
        return self._link is not None and self._link.is_open

    def meet(self, leg: RankLeg) -> None:
        other = self._legs.get(leg.room)
        leg.peer = self
        if other is not None and leg.room != 0:
            for each in (other, leg):
                each.rank.end(each, "error", f"Two requests in room {leg.room}")
            return
        self._legs[leg.room] = leg
        if self.is_open:
            leg.rank.allocate(leg)
            self._watch()
        elif self._connecting is None:
            self._connecting = self._loop.create_task(self._connect(), name=f"to {self._host}:{self._port}")

    def send(self, message: Message) -> None:
        if self._link is not None:
            self._link.send(message)

    def forget(self, leg: RankLeg) -> None:
        if self._legs.get(leg.room) is leg:
            del self._legs[leg.room]

    def drop(self, life: str) -> None:
        if self._link is not None and self._link.life == life:
            self._link.close()

    def close(self) -> None:
        if self._connecting is not None:
            self._connecting.cancel()
        if self._beating is not None:
            self._beating.cancel()
        if self._link is not None:
            self._link.close()

    async def _connect(self) -> None:
        link = PeerLink(self._received, self._lost)
        for _ in range(CONNECT_TRIES):
            try:
                async with asyncio.timeout(CONNECT_LIMIT_S):
                    await self._network.connect(lambda: link, self._host, self._port)
                break
            except (OSError, TimeoutError):
                await asyncio.sleep(CONNECT_PAUSE_S)
        self._connecting = None
        if not link.is_open:
            self._fail(NO_TOPOLOGY)
            return
        self._link = link
        link.send(Hello(self._life))
        for leg in list(self._legs.values()):
            leg.rank.do(leg.rank.allocate, leg)
        self._watch()

    def _received(self, _link: PeerLink, message: Message) -> None:
        self._beats_missed = 0
        if isinstance(message, Landed | Released) and (leg := self._legs.get(message.room)) is not None:
            if isinstance(message, Landed):
                leg.rank.do(leg.rank.landed, leg, message.first_token)
            else:
                leg.rank.do(leg.rank.released, leg)

    def _lost(self, link: PeerLink) -> None:
        """The link is gone. The legs learn of it later, by heartbeats, as in SGLang."""
        if link is not self._link:
            return
        self._link = None
        delay_s = self._model.heartbeat_s * self._model.heartbeat_misses
        self._loop.call_later(delay_s, self._fail, LOST, list(self._legs.values()))

    def _watch(self) -> None:
        if self._beating is None:
            self._beats_missed = 0
            self._beating = self._loop.call_later(self._model.heartbeat_s, self._beat)

    def _beat(self) -> None:
        self._beating = None
        if not self._legs or self._link is None:
            return
        if self._beats_missed >= self._model.heartbeat_misses:
            self._link.close()
            self._fail(LOST)
            return
        self._beats_missed += 1
        self._link.send(Heartbeat())
        self._beating = self._loop.call_later(self._model.heartbeat_s, self._beat)

    def _fail(self, why: str, legs: list[RankLeg] | None = None) -> None:
        for leg in list(self._legs.values()) if legs is None else legs:
            leg.rank.do(leg.rank.prefill_lost, leg, why)
