"""The request plane's end in an engine host: frames from frontends become legs, an engine step becomes one frame.

Way:   frontend -> [PlaneServer] -> Engine; the tokens of one engine step, for all legs of a connection, go back at once
Owns:  each connection's legs: a connection that ends takes all its legs with it; the ledger of what is granted
Fails: a leg there is no room for is refused at once, and one of the other kind (tokens, vectors) ends with an error:
       the engine never sees it
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Protocol

from disagg.adapters import GONE
from disagg.kv_events.book import KvBook
from disagg.plane import messages as m
from disagg.plane.adapters import HeldAdapters
from disagg.plane.doorstep import Doorstep
from disagg.plane.engine import LOADED, Engine, EngineFacts, Leg
from disagg.plane.framing import Connection
from disagg.plane.kv_telling import KvTelling
from disagg.plane.ledger import Capacity, Grant, Ledger
from disagg.plane.network import TCP, Listener, Network
from disagg.plane.text import LegText, TextService

log = logging.getLogger(__name__)

REPORT_S = 0.01  # least time between two reports of what is taken
LOOK_S = 2.0  # how often silent frontends are looked for
SILENT_S = 10.0  # a frontend pings every second; after this silence it counts as gone, even if TCP shows nothing


class OtherHosts(Protocol):
    """Of an engine over several nodes, whose first host this is."""

    def saw(self, report: m.MemberSamples) -> None: ...

    def came_to(self, stage: m.MemberStage) -> None: ...

    def said(self, telling: m.MemberKv, again: Callable[[], None]) -> None: ...

    def left(self, member: int, why: str) -> None: ...


class PlaneServer:
    """Serves one incarnation of one engine to any number of frontends. `others`: None for an engine on one node;
    `embeds`: it makes vectors, not tokens; `texts`: the tokenizer, for frontends that have none; `kv`: what its prefix
    caches hold, None where nobody is told."""

    def __init__(
        self,
        engine: Engine,
        facts: EngineFacts,
        incarnation: int,
        secret: bytes,
        network: Network = TCP,
        now_s: Callable[[], float] = time.monotonic,
        others: OtherHosts | None = None,
        *,
        embeds: bool = False,
        texts: TextService | None = None,
        kv: KvBook | None = None,
    ) -> None:
        self.texts, self.kv = texts, kv
        self.engine, self.incarnation, self.now_s, self.others = engine, incarnation, now_s, others
        self.embeds = embeds
        self.ranks = facts.ranks
        self.ledger = Ledger(facts.ranks, Capacity(facts.requests_max, facts.kv_tokens, facts.page_size))
        self.adapters = HeldAdapters(engine, self._abort_legs_of)
        self._secret, self._network, self._doorstep = secret, network, Doorstep("the request plane")
        self._listener: Listener | None = None
        self._report_is_due = False
        self._reported_at_s = float("-inf")
        self._looking: asyncio.TimerHandle | None = None
        self._looked_at_s = now_s()
        self.sessions: dict[_Session, None] = {}  # in their order: a simulation takes the same steps each time
        self._busy_with: set[asyncio.Task[None]] = set()
        self._reading_metrics = asyncio.Lock()

    async def start(self, host: str, port: int = 0) -> int:
        """Listens and returns the port."""
        self._listener = await self._network.listen(self._accept, host, port)
        self._look_soon()
        return self._listener.port

    def report_soon(self) -> None:
        """Called when the ledger has changed: reports it to all frontends at once, REPORT_S after the last report at
        the earliest. What one frontend has not heard of another's requests, both may send to the same rank."""
        if not self._report_is_due:
            self._report_is_due = True
            loop = asyncio.get_running_loop()
            loop.call_at(max(loop.time(), self._reported_at_s + REPORT_S), self._report)

    def taken(self) -> m.Taken:
        ledger = self.ledger
        granted = zip(ledger.requests, ledger.kv_tokens, ledger.canaries, ledger.to_read, strict=True)
        return m.Taken(
            self.incarnation,
            [
                m.RankTaken(*taken, read.prompts, read.tokens, read.area, read.seconds, read.loaded)
                for taken, read in zip(granted, ledger.reading, strict=True)
            ],
        )

    def flush(self, wait_s: float, asked_by: _Session) -> None:
        self._go(self._flush(wait_s, asked_by), "flush the prefix cache")

    def tell_metrics(self, labels: str, asked_by: _Session) -> None:
        self._go(self._tell_metrics(labels, asked_by), "read the engine's metrics")

    def _go(self, what: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.get_running_loop().create_task(what, name=name)
        self._busy_with.add(task)
        task.add_done_callback(self._busy_with.discard)

    async def _tell_metrics(self, labels: str, asked_by: _Session) -> None:
        """One at a time: they take the time of a thread, whoever asks."""
        try:
            async with self._reading_metrics:
                families = await asyncio.to_thread(self.engine.metrics, labels)
        except Exception as error:  # noqa: BLE001 - whatever the engine raises: it has none to tell, and serves on
            log.warning("the engine's metrics could not be read: %r", error)
            families = []
        asked_by.send(m.Metrics(self.incarnation, families))

    async def _flush(self, wait_s: float, asked_by: _Session) -> None:
        try:
            why_not = await self.engine.flush_cache(wait_s)
        except Exception as error:  # noqa: BLE001 - whatever the engine raises: who asked is told, and it serves on
            log.warning("the prefix cache could not be flushed: %r", error)
            why_not = f"it failed: {error}"
        asked_by.send(m.Flushed(self.incarnation, why_not))

    def _look_soon(self) -> None:
        self._looked_at_s = self.now_s()
        self._looking = asyncio.get_running_loop().call_later(LOOK_S, self._look)

    def _look(self) -> None:
        was_held_up = self.now_s() - self._looked_at_s > 2 * LOOK_S  # pings may lie unread in our sockets
        for session in list(self.sessions):
            if was_held_up:
                session.heard_at_s = self.now_s()
            elif session.connection is not None and self.now_s() - session.heard_at_s > SILENT_S:
                session.connection.close(f"the frontend said nothing for {SILENT_S:g} s")
        self._look_soon()

    def _report(self) -> None:
        self._report_is_due, self._reported_at_s = False, asyncio.get_running_loop().time()
        taken = self.taken()
        for session in self.sessions:
            session.send(taken)

    def _accept(self) -> Connection:
        session = _Session(self)
        self.sessions[session] = None
        return Connection(
            self._secret,
            is_server=True,
            on_open=session.opened,
            on_frame=session.received,
            on_lost=session.lost,
            doorstep=self._doorstep,
        )

    def _abort_legs_of(self, adapter: str) -> None:
        for session in self.sessions:
            session.abort_legs_of(adapter)

    def close(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
        if self._listener is not None:
            self._listener.close()
        self._doorstep.close()
        for session in list(self.sessions):
            if session.connection is not None:
                session.connection.close("the host stops")


class _Session:
    """One frontend's connection: its legs, and the step that is being gathered for it."""

    def __init__(self, server: PlaneServer) -> None:
        self.server = server
        self.heard_at_s = server.now_s()
        self.connection: Connection | None = None
        self.member: int | None = None  # the peer is a host of the same engine
        self._legs: dict[int, _LiveLeg] = {}
        self.deltas: list[m.Delta] = []
        self._ends: list[m.LegEnd] = []
        self.stages: list[m.Stage] = []
        self.shown: list[m.Shown] = []
        self._reading: dict[int, asyncio.Task[None]] = {}
        self._flush_is_due = False
        self._kv: KvTelling | None = None

    def opened(self, connection: Connection) -> None:
        self.connection = connection
        self.send(self.server.taken())

    def received(self, body: bytes) -> None:
        server = self.server
        self.heard_at_s = server.now_s()
        match message := m.decode_to_host(body):
            case m.Submit():
                self._submit(message)
            case m.Abort():
                live = self._legs.get(message.leg)
                if live is not None:
                    server.engine.abort(live.handle)
            case m.Read():
                self._read(message)
            case m.ReadOff():
                if (task := self._reading.get(message.number)) is not None:
                    task.cancel()
            case m.LoadsWanted():
                self.send(m.Loads(server.incarnation, server.engine.loads()))
            case m.MetricsWanted():
                server.tell_metrics(message.labels, self)
            case m.HealthWanted():
                self.send(m.Health(server.incarnation, server.engine.health()))
            case m.LoadAdapter() | m.UnloadAdapter():
                server.adapters.change(message, self.send)
            case m.AdaptersWanted():
                self.send(m.Adapters(dict(server.adapters.legs)))
            case m.FlushWanted():
                server.flush(message.wait_s, self)
            case m.KvWanted():
                self._tell_kv()
            case m.PeerGone():
                server.engine.drop_peer(message.life)
                for session in server.sessions:
                    if session.member is not None:
                        session.send(message)
            case m.MemberSamples() if server.others is not None:
                self.member = message.member
                server.others.saw(message)
            case m.MemberStage() if server.others is not None:
                server.others.came_to(message)
            case m.MemberKv() if server.others is not None:
                server.others.said(message, partial(self.send, m.KvAgain(message.dp_rank)))
            case m.Ping():
                self.send(m.Pong(message.sent_at_s, server.now_s()))

    def lost(self, why: str) -> None:
        if self._legs:
            log.info("a frontend is gone (%s): aborting its %d legs", why, len(self._legs))
        self.connection = None
        self.server.sessions.pop(self, None)
        if self._kv is not None:
            self._kv.end()
        for live in list(self._legs.values()):
            self.server.engine.abort(live.handle)
        for task in list(self._reading.values()):
            task.cancel()
        if self.member is not None and self.server.others is not None:
            self.server.others.left(self.member, why)

    def _submit(self, message: m.Submit) -> None:
        if message.leg in self._legs or not 0 <= message.dp_rank < self.server.ranks:
            self._drop(f"leg {message.leg} exists already, or there is no rank {message.dp_rank}")
            return
        if (end := self._refusal(message)) is not None:
            self._ends.append(end)
            self.flush_soon()
            return
        prompt_ids, at = m.unpack_ids(message.prompt), message.bootstrap
        new_tokens = message.sampling["max_new_tokens"]
        grant = self.server.ledger.grant(
            message.dp_rank, len(prompt_ids), new_tokens, is_canary=message.is_canary, to_read=message.to_read
        )
        if grant is None:
            self.server.report_soon()  # the frontend believed otherwise
            self._ends.append(m.LegEnd(message.leg, m.REFUSED, "no room for it now"))
            self.flush_soon()
            return
        self.server.report_soon()
        log.info("leg %s begins: %d prompt tokens, room %s", message.leg_id, len(prompt_ids), at.room if at else 0)
        asks, embeds, second_at = message.asks, message.embeds, message.second_at
        of_leg = (message.leg_id, prompt_ids, message.sampling, message.dp_rank)
        leg = Leg(*of_leg, at, asks, embeds, second_at, message.adapter, message.salt, message.trace)
        live = self._legs[message.leg] = self._live(message, leg, grant)
        self.server.adapters.begins(leg.adapter)
        live.handle = self.server.engine.submit(leg, live)

    def _refusal(self, message: m.Submit) -> m.LegEnd | None:
        """Of a leg that this host does not even count."""
        if message.embeds is not self.server.embeds:  # SGLang's scheduler would die of it
            wanted, made = ("vectors", "tokens") if message.embeds else ("tokens", "vectors")
            return m.LegEnd(message.leg, "error", f"this engine makes {made}, and was asked for {wanted}")
        if message.text is not None and self.server.texts is None:
            return m.LegEnd(message.leg, "error", "this host has no tokenizer")
        if message.adapter and message.adapter not in self.server.adapters.legs:
            return m.LegEnd(message.leg, m.NO_ADAPTER, GONE.format(message.adapter))
        return None

    def _live(self, message: m.Submit, leg: Leg, grant: Grant) -> _LiveLeg:
        wanted, texts = message.text, self.server.texts
        if wanted is None or texts is None:
            return _LiveLeg(self, message.leg, leg, grant)
        emitted_ids = list(leg.prompt_ids[len(leg.prompt_ids) - wanted.emitted :])
        return _SpokenLeg(self, message.leg, leg, grant, texts.leg_text(wanted, emitted_ids))

    def _tell_kv(self) -> None:
        server = self.server
        if server.kv is None:
            self.send(m.KvStart(server.incarnation, 0, {}, "it has no prefix cache, or is not to tell of it"))
        elif self.connection is not None:
            self._kv = self._kv or KvTelling(server.kv, self.connection, server.incarnation)
            self._kv.begin()

    def _read(self, message: m.Read) -> None:
        if message.number in self._reading:
            self._drop(f"body {message.number} is being read already")
            return
        if self.server.texts is None:
            self.send(m.HasRead(message.number, b"", m.BUSY))
            return
        task = asyncio.get_running_loop().create_task(self._answer(self.server.texts, message), name="read a body")
        self._reading[message.number] = task
        task.add_done_callback(lambda _: self._reading.pop(message.number))

    async def _answer(self, texts: TextService, message: m.Read) -> None:
        self.send(await texts.read(message.number, message.words, message.body))

    def add_end(self, end: m.LegEnd) -> None:
        del self._legs[end.leg]  # KeyError: a second last word, which is a bug
        self._ends.append(end)
        self.flush_soon()

    def abort_legs_of(self, adapter: str) -> None:
        for live in list(self._legs.values()):
            if live.adapter == adapter:
                self.server.engine.abort(live.handle)

    def send(self, message: m.ToFrontend) -> None:
        if self.connection is not None:
            self.connection.send(m.encode(message))

    def flush_soon(self) -> None:
        # The tasks that one engine step woke are in the ready queue already, so this runs after all of them.
        if not self._flush_is_due:
            self._flush_is_due = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_is_due = False
        step = m.Step(self.server.incarnation, self.deltas, self._ends, self.stages, self.shown)
        self.deltas, self._ends, self.stages, self.shown = [], [], [], []
        self.send(step)

    def _drop(self, why: str) -> None:
        assert self.connection is not None
        self.connection.close(why)


NOT_KNOWN_S = -1.0


class _LiveLeg:
    """The sink of one leg: counts the tokens it sent, so that the frontend can see a gap or a repeat."""

    __slots__ = (
        "_embedding",
        "_grant",
        "_id",
        "_number",
        "_offset",
        "_prompt_tokens",
        "_reads",
        "_session",
        "_standing",
        "_stood_s",
        "adapter",
        "handle",
    )

    def __init__(self, session: _Session, number: int, leg: Leg, grant: Grant) -> None:
        self._session, self._number, self._id, self._grant = session, number, leg.id, grant
        self.adapter, self._prompt_tokens = leg.adapter, len(leg.prompt_ids)
        self._offset = 0
        self._standing = session.server.ledger.stands[grant.dp_rank] if leg.bootstrap is None else None
        self._reads, self._stood_s = False, NOT_KNOWN_S
        self._embedding = b""
        self.handle: object = None

    def on_tokens(self, token_ids: list[int], logprobs: list[m.TokenLogprobs] | None = None) -> None:
        if not self._offset:
            self._has_read()
        self._session.deltas.append(m.Delta(self._number, self._offset, token_ids, logprobs))
        self._session.flush_soon()
        self._offset += len(token_ids)

    def _has_read(self) -> None:
        if self._grant.to_read:
            self._session.server.ledger.has_read(self._grant)
            self._session.server.report_soon()
        if self._reads and self._standing is not None:
            now_s, self._reads = self._session.server.now_s(), False
            self._standing.ends(now_s)
            self._stood_s = self._standing.seconds(now_s)

    def on_stage(self, name: str, cached_tokens: int | None = None) -> None:
        if name == "prefilling" and self._standing is not None and self._stood_s == NOT_KNOWN_S and not self._reads:
            self._reads = True
            self._standing.begins(self._session.server.now_s())
        elif name == "transferring":
            self._has_read()
        self._session.stages.append(m.Stage(self._number, name, cached_tokens))
        self._session.flush_soon()

    def on_embedding(self, packed: bytes) -> None:
        self._embedding = packed

    def on_end(
        self,
        reason: str,
        detail: str,
        cached_tokens: int,
        stats: dict[str, float],
        matched: int | str | None = None,
    ) -> None:
        log.info("leg %s ends: %s, %d tokens %s", self._id, reason, self._offset, detail)
        server, stats = self._session.server, dict(stats)
        loaded = int(stats.pop(LOADED, 0))
        self._has_read()
        server.ledger.give_back(self._grant)
        if "forward_start" in stats and "forward_end" in stats and not self._grant.is_canary:  # too small to show much
            reading = server.ledger.reading[self._grant.dp_rank]
            reading.add(self._prompt_tokens, cached_tokens, stats["forward_start"], stats["forward_end"], loaded)
        if self._standing is not None and self._stood_s != NOT_KNOWN_S and self._offset > 1:
            stats["stood_s"] = self._standing.seconds(server.now_s()) - self._stood_s
        server.adapters.ends(self.adapter)
        server.report_soon()
        end = m.LegEnd(self._number, reason, detail, cached_tokens, stats, matched, self._embedding)
        self._session.add_end(end)


class _SpokenLeg(_LiveLeg):
    """Of a frontend without a tokenizer: it says the text of its tokens, too."""

    __slots__ = ("_text",)

    def __init__(self, session: _Session, number: int, leg: Leg, grant: Grant, text: LegText) -> None:
        super().__init__(session, number, leg, grant)
        self._text = text

    def on_tokens(self, token_ids: list[int], logprobs: list[m.TokenLogprobs] | None = None) -> None:
        text = self._text
        named = {token.token_id for token in logprobs or ()}
        named.update(token_id for token in logprobs or () for token_id, _ in (*token.top, *token.chosen))
        texts = text.push(token_ids)
        shown = m.Shown(self._number, texts, text.unfinished, text.bytes_of(named) if named else {})
        self._session.shown.append(shown)
        super().on_tokens(token_ids, logprobs)
