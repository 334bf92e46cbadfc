"""The request plane's end in a frontend: one connection to one incarnation of one engine.

Way:   coordinator -> [PlaneClient] -> host; each Step that comes back is handed to the legs it speaks of
Owns:  the numbers of its legs, and the offset between the host's monotonic clock and ours
Fails: a connection that ends, or a host that is silent for `silent_s`, gives each of its legs one LegEnd with reason
       LOST, at once. (TCP alone would notice a host that hangs, or a cable that was pulled, minutes later.)
       `loads`, `health` and `flush_cache` raise LegLost without a connection, and TimeoutError after their limit
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from disagg.errors import LegLost
from disagg.plane import messages as m
from disagg.plane.framing import Connection
from disagg.plane.network import TCP, Network

log = logging.getLogger(__name__)

LOST = "lost"
CONNECT_S = 5.0
PING_S = 1.0
SILENT_S = 4.0
LATE_S = 0.5  # a timer this late means that our own process was held up, not that the host is silent


class LegReceiver(Protocol):
    def on_tokens(self, offset: int, token_ids: list[int], logprobs: list[m.TokenLogprobs] | None) -> None: ...

    def on_stage(self, name: str, cached_tokens: int | None) -> None: ...

    def on_end(self, end: m.LegEnd) -> None:
        """Exactly once, and nothing follows."""


class PlaneClient:
    """`on_lost(why)` is called once if the connection ends without `close`. With `on_kv` it asks for what the engine's
    prefix caches hold; nothing of that comes after the connection's end."""

    def __init__(
        self,
        address: str,
        incarnation: int,
        secret: bytes,
        on_lost: Callable[[str], None],
        *,
        on_taken: Callable[[list[m.RankTaken]], None] = lambda _ranks: None,
        on_peer_gone: Callable[[str], None] = lambda _life: None,
        on_kv: Callable[[m.KvStart | m.KvHeld | m.KvChanged], None] | None = None,
        on_kv_again: Callable[[int], None] = lambda _dp_rank: None,
        silent_s: float = SILENT_S,
        network: Network = TCP,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.address, self.incarnation = address, incarnation
        self._secret, self._on_lost, self._on_taken = secret, on_lost, on_taken
        self._on_peer_gone, self._on_kv, self._on_kv_again = on_peer_gone, on_kv, on_kv_again
        self._silent_s, self._network, self._now_s = silent_s, network, now_s
        self._numbers = itertools.count(1)
        self._legs: dict[int, LegReceiver] = {}
        self._on_text: dict[int, Callable[[m.Shown], None]] = {}  # of legs that want text
        self._reading: dict[int, asyncio.Future[m.HasRead]] = {}  # bodies that the host reads
        self._changing: dict[int, asyncio.Future[str]] = {}  # changes of adapters: why each did not succeed
        self._connection: Connection | None = None
        self._opened: asyncio.Future[None] | None = None
        self._answers: dict[type, asyncio.Future[Any]] = {}  # to questions that were asked
        self._keeping: asyncio.TimerHandle | None = None
        self._heard_at_s = self._kept_at_s = 0.0
        self._best_round_trip_s = float("inf")
        self.clock_offset_s = 0.0  # host's monotonic clock minus ours
        self.frames_received = 0
        self.legs_lost = 0  # when the connection ended

    async def connect(self, limit_s: float = CONNECT_S) -> None:
        """Returns once the host has proven that it knows the secret; raises LegLost."""
        loop = asyncio.get_running_loop()
        self._opened = loop.create_future()
        host, port = self.address.rsplit(":", 1)
        connection = Connection(
            self._secret, is_server=False, on_open=self._on_open, on_frame=self._received, on_lost=self._lost
        )
        try:
            async with asyncio.timeout(limit_s):
                await self._network.connect(lambda: connection, host, int(port))
                await self._opened
            if self._connection is None:  # it ended in the turn of the loop in which it opened
                raise LegLost(self.address, "the engine host closed the connection")
        except BaseException as error:  # also a cancellation: no half-made connection stays behind
            self._on_lost = lambda _why: None
            connection.close("given up")
            if isinstance(error, TimeoutError | OSError):
                why = str(error) or "no answer in time"
                raise LegLost(self.address, f"no connection to the engine host: {why}") from error
            raise
        self._heard_at_s = self._kept_at_s = self._now_s()
        self._keep()
        self.ask_for_kv()

    @property
    def is_open(self) -> bool:
        return self._connection is not None

    @property
    def silence_s(self) -> float:
        """Since the host was heard last; while it is well, at most PING_S and a round trip."""
        return self._now_s() - self._heard_at_s

    def submit(
        self,
        receiver: LegReceiver,
        *,
        leg_id: str,
        prompt: bytes,
        sampling: dict[str, Any],
        dp_rank: int,
        bootstrap: m.Bootstrap | None,
        is_canary: bool = False,
        asks: dict[str, Any] | None = None,
        embeds: bool = False,
        second_at: int = 0,
        adapter: str = "",
        text: m.TextWanted | None = None,
        on_text: Callable[[m.Shown], None] | None = None,
        to_read: int = 0,
        salt: str = "",
        trace: str = "",
    ) -> int:
        """Sends the leg and returns its number. On a lost connection the receiver has its end before this returns.

        `on_text` gets what `text` asks for, before the tokens that it is of.
        """
        leg = next(self._numbers)
        if self._connection is None:
            receiver.on_end(m.LegEnd(leg, LOST, "no connection"))
            return leg
        self._legs[leg] = receiver
        if on_text is not None:
            self._on_text[leg] = on_text
        if is_canary and not trace:
            trace = m.UNTRACED
        of_leg = (leg, leg_id, prompt, sampling, dp_rank, bootstrap)
        submit = m.Submit(*of_leg, is_canary, asks or {}, embeds, second_at, adapter, text, to_read, salt, trace)
        self._connection.send_soon(m.encode(submit))
        return leg

    def abort(self, leg: int) -> None:
        if leg in self._legs and self._connection is not None:
            self._connection.send(m.encode(m.Abort(leg)))

    def ask_for_kv(self) -> None:
        """All anew: KvStart comes again."""
        if self._on_kv is not None and self._connection is not None:
            self._connection.send(m.encode(m.KvWanted()))

    @property
    def unsent_bytes(self) -> int:
        return 0 if self._connection is None else self._connection.unsent_bytes

    def tell(self, word: m.PeerGone | m.MemberSamples | m.MemberStage | m.MemberKv) -> None:
        """Sends a message that has no answer; it is lost if the connection is."""
        if self._connection is not None:
            self._connection.send(m.encode(word))

    def tell_peer_gone(self, life: str) -> None:
        self.tell(m.PeerGone(life))

    async def loads(self, limit_s: float = CONNECT_S) -> list[m.RankLoad]:
        """The engine's own newest load snapshot of each rank."""
        ranks: list[m.RankLoad] = await self._ask(m.LoadsWanted(), limit_s)
        return ranks

    async def metrics(self, labels: str, limit_s: float = CONNECT_S) -> list[m.MetricFamily]:
        """The engine's own, each sample with these labels. Raises LegLost, and TimeoutError."""
        families: list[m.MetricFamily] = await self._ask(m.MetricsWanted(labels), limit_s)
        return families

    async def health(self, limit_s: float = CONNECT_S) -> list[m.RankHealth]:
        ranks: list[m.RankHealth] = await self._ask(m.HealthWanted(), limit_s)
        return ranks

    async def change_adapter(self, change: m.LoadAdapter | m.UnloadAdapter, limit_s: float) -> str:
        """Why it did not succeed; empty where it did. Raises LegLost, and TimeoutError: it may still succeed then."""
        if self._connection is None:
            raise LegLost(self.address, "no connection")
        number = next(self._numbers)
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._changing[number] = answer
        self._connection.send(m.encode(msgspec.structs.replace(change, number=number)))
        try:
            async with asyncio.timeout(limit_s):
                return await answer
        finally:
            self._changing.pop(number, None)

    async def adapters(self, limit_s: float = CONNECT_S) -> dict[str, int]:
        """Those that requests may name there -> how many legs run with each. Raises LegLost, and TimeoutError."""
        legs: dict[str, int] = await self._ask(m.AdaptersWanted(), limit_s)
        return legs

    async def flush_cache(self, wait_s: float, limit_s: float = CONNECT_S) -> str:
        """Why the engine's prefix cache could not be emptied within `wait_s`; "" once it is."""
        why_not: str = await self._ask(m.FlushWanted(wait_s), wait_s + limit_s)
        return why_not

    @property
    def reading(self) -> int:
        """Bodies that the host reads for us now."""
        return len(self._reading)

    async def read(self, words: str, body: bytes) -> m.HasRead:
        """What the host's tokenizer makes of a client's body (`words`: see `Read`). Raises LegLost. Cancelled, the host
        hears of it."""
        if self._connection is None:
            raise LegLost(self.address, "no connection")
        number = next(self._numbers)
        answer: asyncio.Future[m.HasRead] = asyncio.get_running_loop().create_future()
        self._reading[number] = answer
        self._connection.send(m.encode(m.Read(number, words, body)))
        try:
            return await answer
        finally:
            if self._reading.pop(number, None) is not None and self._connection is not None:
                self._connection.send(m.encode(m.ReadOff(number)))

    def close(self) -> None:
        self._on_lost = lambda _why: None
        if self._connection is not None:
            self._connection.close("closed here")

    async def _ask(self, question: m.ToHost, limit_s: float) -> Any:
        """Who asks while a question of the same type waits for its answer shares that answer."""
        asked = type(question)
        if asked not in self._answers:
            if self._connection is None:
                raise LegLost(self.address, "no connection")
            self._answers[asked] = asyncio.get_running_loop().create_future()
            self._connection.send(m.encode(question))
        async with asyncio.timeout(limit_s):
            return await asyncio.shield(self._answers[asked])

    def _answered(self, question: type, answer: Any) -> None:
        if (waiting := self._answers.pop(question, None)) is not None:
            waiting.set_result(answer)

    def _keep(self) -> None:
        """Every PING_S: is the host still there?"""
        if self._connection is None:
            return
        now_s = self._now_s()
        if now_s - self._kept_at_s > PING_S + LATE_S:
            self._heard_at_s = now_s  # we were held up ourselves: its answers may lie unread in our socket
        self._kept_at_s = now_s
        if now_s - self._heard_at_s > self._silent_s:
            self._connection.close(f"the host said nothing for {self._silent_s:g} s")
            return
        # It measures the clocks' offset, too; the measurement with the shortest round trip is kept.
        self._connection.send(m.encode(m.Ping(self._now_s())))
        self._keeping = asyncio.get_running_loop().call_later(PING_S, self._keep)

    def _on_open(self, connection: Connection) -> None:
        self._connection = connection
        assert self._opened is not None
        if not self._opened.done():
            self._opened.set_result(None)

    def _received(self, body: bytes) -> None:
        self.frames_received += 1
        self._heard_at_s = self._now_s()
        match message := m.decode_to_frontend(body):
            case m.Step():
                self._step(message)
            case m.HasRead():
                if (waiting := self._reading.pop(message.number, None)) is not None and not waiting.done():
                    waiting.set_result(message)
            case m.Pong():
                now_s = self._heard_at_s
                round_trip_s = now_s - message.sent_at_s
                if round_trip_s < self._best_round_trip_s:
                    self._best_round_trip_s = round_trip_s
                    self.clock_offset_s = message.here_at_s - (message.sent_at_s + now_s) / 2
            case m.Loads():
                self._answered(m.LoadsWanted, message.ranks)
            case m.Metrics():
                self._answered(m.MetricsWanted, message.families)
            case m.Health():
                self._answered(m.HealthWanted, message.ranks)
            case m.AdapterChanged():
                if (change := self._changing.get(message.number)) is not None and not change.done():
                    change.set_result(message.error)
            case m.Adapters():
                self._answered(m.AdaptersWanted, message.legs)
            case m.Flushed():
                self._answered(m.FlushWanted, message.why_not)
            case m.KvStart() | m.KvHeld() | m.KvChanged() if self._on_kv is not None:
                self._on_kv(message)
            case m.KvAgain():
                self._on_kv_again(message.dp_rank)
            case m.PeerGone():
                self._on_peer_gone(message.life)
            case m.Taken(incarnation, ranks) if incarnation == self.incarnation:
                self._on_taken(ranks)

    def _step(self, step: m.Step) -> None:
        if step.incarnation != self.incarnation:
            log.warning("%s: a frame of incarnation %d dropped", self.address, step.incarnation)
            return
        legs = self._legs
        for stage in step.stages:
            receiver = legs.get(stage.leg)
            if receiver is not None:
                receiver.on_stage(stage.name, stage.cached_tokens)
        for shown in step.shown:
            if (on_text := self._on_text.get(shown.leg)) is not None:
                on_text(shown)
        for delta in step.deltas:
            receiver = legs.get(delta.leg)
            if receiver is not None:
                receiver.on_tokens(delta.offset, delta.tokens, delta.logprobs)
        for end in step.ends:
            receiver = self._legs.pop(end.leg, None)
            self._on_text.pop(end.leg, None)
            if receiver is not None:
                receiver.on_end(end)

    def _lost(self, why: str) -> None:
        self._connection = None
        if self._keeping is not None:
            self._keeping.cancel()
        answers, self._answers = self._answers, {}
        reading, self._reading = self._reading, {}
        changing, self._changing = self._changing, {}
        self._on_text.clear()
        for waiting in (self._opened, *answers.values(), *reading.values(), *changing.values()):
            if waiting is not None and not waiting.done():
                waiting.set_exception(LegLost(self.address, why))
                waiting.exception()  # whoever asked may have given up: nobody need read it
        legs, self._legs = self._legs, {}
        self.legs_lost = len(legs)
        for number, receiver in legs.items():
            receiver.on_end(m.LegEnd(number, LOST, f"the connection to the engine ended: {why}"))
        self._on_lost(why)
