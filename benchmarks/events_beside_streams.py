"""What cache events that come to a frontend cost the streams that it has: inter-token latency with and without them.

    python -m benchmarks.events_beside_streams [--blocks-s 200000] [--a-change 5,32] [--streams 64] [--windows 6]

Way:   stub engines -> a real frontend -> streams, a token each PACE_MS; beside them an engine of RANKS dp ranks, in a
       process of its own, that tells `blocks-s` blocks a second in every other window of WINDOW_S, and nothing in the
       windows between: as many stored as removed, in frames as a host's KvBook makes them
In:    `a-change`: blocks that a change has, 64 tokens each: 5 are a turn of 320 tokens, 32 a prompt of 2,048
Out:   p50, p99 and the longest of the gaps between two tokens of a stream, as its client sees them, of each kind of
       window; the frontend's CPU, and for how long it had to wait for a core, which is the machine's fault; how late
       the last events were. `--ahead`: our processes go before all others of the machine, which needs to be root
Fails: a rate that was not kept is told
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from array import array
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import uvloop

from benchmarks.load import Answer, chat, drive
from benchmarks.processes import cpu_s, serve
from benchmarks.prompts import Prompts
from benchmarks.stub_deployment import BLOCK_TOKENS, StubDeployment, stub_deployment
from disagg.host_spec import SECRET_VARIABLE
from disagg.kv_events.book import GATHER_S, KvBook, Subscriber
from disagg.kv_events.changes import Change
from disagg.kv_events.events import At, Begun, Event, Removed, Stored, Tier
from disagg.models.resolve import resolve_model
from disagg.plane.server import PlaneServer
from disagg.process.stub import FACTS, StubEngine
from disagg.registry.records import EngineRecord, State
from disagg.roles import Role

PACE_MS = 10.0
WINDOW_S, SETTLE_S = 4.0, 0.5  # of each window the first half second does not count
RANKS = 16
CONVERSATIONS = 40  # of a rank; each change goes on with one of them
AHEAD = -15
HELD_S = 1.0  # a rank stores for so long, and removes it all in as long


@dataclass(frozen=True, slots=True)
class Beside:
    """Gaps in ms, of the windows without and with events."""

    a_change: int
    blocks_s: float  # that were told
    gap_p50: tuple[float, float]
    gap_p99: tuple[float, float]
    gap_max: tuple[float, float]
    frontend_cores: tuple[float, float]
    waited_share: tuple[float, float]  # of the time, for which the frontend had work and no core
    lag_ms: float  # of the last events that the frontend took in, at the end of a window with them


class Recorder:
    """What a book tells its subscribers."""

    def __init__(self) -> None:
        self.frames: list[list[Change]] = []

    def changed(self, _dp_rank: int, _begins: int, changes: list[Change], _lag_s: float) -> None:
        self.frames.append(changes)


def frames(secret: bytes, seed: int, blocks: int, a_change: int, a_frame: int) -> list[list[Change]]:
    """`blocks` are stored, a change at a time, and then removed, the last first; `a_frame` of them in each frame."""
    random, book, recorder = Random(seed), KvBook(secret, BLOCK_TOKENS), Recorder()
    last, rounds = [0] * CONVERSATIONS, list[list[Event]]()
    tokens, names = a_change * BLOCK_TOKENS, range(1, blocks // a_change + 1)
    for name in names:
        ids = array("I", random.choices(range(100_000), k=tokens)).tobytes()
        at = random.randrange(CONVERSATIONS)
        rounds.append([At(name, last[at], ids), Stored(name, tokens, Tier.DEVICE)])
        last[at] = name
    rounds += [[Removed(name, tokens, Tier.DEVICE)] for name in reversed(names)]
    book.heard(0, [Begun(0)], lambda: None)
    book.subscribe(recorder)
    told = 0
    for events in rounds:
        book.heard(0, events, lambda: None)
        told += a_change
        if told >= a_frame:
            book.flush()
            told = 0
    book.flush()
    return recorder.frames


def is_told(at_s: float) -> bool:
    """Whether events are told at this time, by the clock that all processes of a machine share."""
    return int(at_s / WINDOW_S) % 2 == 1


class Teller:
    """Stands in for the KvBook of an engine. `count`: blocks that were told."""

    def __init__(self, secret: bytes, blocks_s: float, a_change: int) -> None:
        self.block_tokens = BLOCK_TOKENS
        self.sequences = dict.fromkeys(range(RANKS), 0)
        self.count = 0
        self._subscriber: Subscriber | None = None
        self._frame_blocks = max(a_change, int(blocks_s / RANKS * GATHER_S))
        self._every_s = self._frame_blocks * RANKS / blocks_s
        held = int(HELD_S * blocks_s / RANKS)
        self._frames = [frames(secret, rank, held, a_change, self._frame_blocks) for rank in range(RANKS)]
        self._next = [0] * RANKS

    def subscribe(self, subscriber: Subscriber) -> Iterator[tuple[int, list[Change]]]:
        self._subscriber = subscriber
        return iter(())

    def unsubscribe(self, _subscriber: Subscriber) -> None:
        self._subscriber = None

    async def tell(self) -> None:
        """Ranks take turns, so that frames come evenly."""
        due_s, rank = time.perf_counter(), 0
        while True:
            due_s += self._every_s / RANKS
            if (wait_s := due_s - time.perf_counter()) > 0:
                await asyncio.sleep(wait_s)
            elif wait_s < -1:
                due_s = time.perf_counter()  # it cannot keep up
            if self._subscriber is None or not is_told(due_s):
                continue
            changes = self._frames[rank][self._next[rank] % len(self._frames[rank])]
            self._next[rank] += 1
            begins, self.sequences[rank] = self.sequences[rank], self.sequences[rank] + len(changes)
            self._subscriber.changed(rank, begins, changes, max(0.0, time.perf_counter() - due_s))
            self.count += sum(change.count for change in changes)
            rank = (rank + 1) % RANKS


async def host(blocks_s: float, a_change: int, count_file: Path) -> None:
    secret = bytes.fromhex(os.environ[SECRET_VARIABLE])
    teller: Any = Teller(secret, blocks_s, a_change)
    facts = msgspec.structs.replace(FACTS, ranks=RANKS)
    server = PlaneServer(StubEngine(facts=facts), facts, 1, secret, kv=teller)
    port = await server.start("127.0.0.1")

    async def say() -> None:
        while True:
            await asyncio.sleep(0.2)
            count_file.write_text(f"{time.perf_counter()} {teller.count}")

    tasks = [asyncio.create_task(each) for each in (teller.tell(), say())]
    await serve(port)
    for task in tasks:
        task.cancel()


async def beside(blocks_s: float, a_change: int, streams: int, windows: int, ahead: bool) -> Beside:
    model = Path(resolve_model("smollm2"))
    record = EngineRecord(
        id="telling-0", role=Role.PREFILL, state=State.READY, incarnation=1, bootstrap="127.0.0.1:8", ranks=RANKS
    )
    with TemporaryDirectory() as scratch:
        count_file = Path(scratch) / "count"
        program = ("benchmarks.events_beside_streams", "--tell", str(blocks_s), str(a_change), str(count_file))
        async with stub_deployment(model, PACE_MS, others=[(record, program)]) as deployment:
            for pid in (os.getpid(), *deployment.pids.values()) if ahead else ():
                _put_ahead(pid)
            return await _measure(deployment, model, count_file, a_change, streams, windows)


async def _measure(
    deployment: StubDeployment, model: Path, count_file: Path, a_change: int, streams: int, windows: int
) -> Beside:
    tokens = int((windows * WINDOW_S + 3 * WINDOW_S + streams / 100) * 1e3 / PACE_MS)
    (text,) = Prompts(model, streams).texts(1, 46)
    request, answers = chat(deployment.url, "stub", text, tokens), list[Answer]()
    loading = asyncio.create_task(drive(deployment.url, [request] * streams, streams, sink=answers))
    while len(answers) < streams or not all(answer.first_s for answer in answers):
        await asyncio.sleep(0.05)
    cores: dict[bool, list[float]] = {False: [], True: []}
    waited: dict[bool, list[float]] = {False: [], True: []}
    frontend = deployment.pids["frontend"]
    told = list[float]()
    begin_s = (int(time.perf_counter() / WINDOW_S) + 1) * WINDOW_S
    for number in range(windows):
        from_s = begin_s + number * WINDOW_S
        await asyncio.sleep(from_s + SETTLE_S - time.perf_counter())
        before, waited_s, count = cpu_s([frontend]), _waited_s(frontend), _count(count_file)
        await asyncio.sleep(from_s + WINDOW_S - 0.1 - time.perf_counter())
        over_s, after, has_events = WINDOW_S - SETTLE_S - 0.1, _count(count_file), is_told(from_s + SETTLE_S)
        cores[has_events].append((cpu_s([frontend]) - before) / over_s)
        waited[has_events].append((_waited_s(frontend) - waited_s) / over_s)
        if has_events:
            told.append((after[1] - count[1]) / (after[0] - count[0]))
    lag_ms = await _lag_ms(deployment.url)
    loading.cancel()
    await asyncio.wait([loading])
    assert not any(answer.error for answer in answers), next(answer.error for answer in answers if answer.error)
    gaps: dict[bool, list[float]] = {False: [], True: []}
    end_s = begin_s + windows * WINDOW_S
    for answer in answers:
        for before_s, after_s in answer.steps_s:
            if begin_s < before_s and after_s < end_s and before_s % WINDOW_S > SETTLE_S:
                gaps[is_told(before_s)].append((after_s - before_s) * 1e3)
    for each in gaps.values():
        each.sort()
    p50, p99 = ((gaps[False][int(len(gaps[False]) * q)], gaps[True][int(len(gaps[True]) * q)]) for q in (0.5, 0.99))
    longest = gaps[False][-1], gaps[True][-1]
    return Beside(a_change, median(told), p50, p99, longest, _medians(cores), _medians(waited), lag_ms)


def _put_ahead(pid: int) -> None:
    os.setpriority(os.PRIO_PROCESS, pid, AHEAD)
    group = Path(f"/proc/{pid}/autogroup")  # of its session: beside those of other sessions this alone counts
    if group.exists():
        group.write_text(str(AHEAD))


def _medians(of: dict[bool, list[float]]) -> tuple[float, float]:
    return median(of[False]), median(of[True])


def _waited_s(pid: int) -> float:
    """For how long the process's main thread had been ready and not run."""
    return int(Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()[1]) / 1e9


def _count(count_file: Path) -> tuple[float, int]:
    at_s, count = count_file.read_text().split()
    return float(at_s), int(count)


async def _lag_ms(url: str) -> float:
    """The longest of its ranks, as the frontend's metrics have it."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
    text = (await reader.read()).decode()
    writer.close()
    lines = [line for line in text.splitlines() if line.startswith("disagg_cache_events_lag_seconds{")]
    return max((float(line.rsplit(" ", 1)[1]) for line in lines), default=0.0) * 1e3


def main() -> None:
    if sys.argv[1:2] == ["--tell"]:
        rate, blocks, count_file = sys.argv[2:]
        uvloop.run(host(float(rate), int(blocks), Path(count_file)))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks-s", type=float, default=200_000)
    parser.add_argument("--a-change", default="5,32")
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--windows", type=int, default=6)
    parser.add_argument("--ahead", action="store_true")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    rows = []
    print("blocks a change  blocks/s   gap p50, ms    p99            longest        cores           waited    lag ms")
    for a_change in map(int, given.a_change.split(",")):
        row = uvloop.run(beside(given.blocks_s, a_change, given.streams, given.windows, given.ahead))
        rows.append(asdict(row))
        gaps = "".join(f"{a:.1f} -> {b:.1f}".ljust(15) for a, b in (row.gap_p50, row.gap_p99, row.gap_max))
        cores = "{:.2f} -> {:.2f}".format(*row.frontend_cores)
        waited = "{:.0%} -> {:.0%}".format(*row.waited_share)
        kept = "" if row.blocks_s > 0.97 * given.blocks_s else "  RATE NOT KEPT"
        print(
            f"{a_change:>15} {row.blocks_s:>9,.0f}   {gaps}{cores:<15} {waited:<9} {row.lag_ms:.1f}{kept}", flush=True
        )
    if given.json:
        given.json.write_text(f"{json.dumps(rows, indent=1)}\n")


if __name__ == "__main__":
    main()
