"""What cache events cost: the scheduler that tells, the host that keeps them, a frontend that starts anew.

    python -m benchmarks.kv_events [--ranks 16] [--blocks 20000] [--json FILE]

Way:   (1) a scheduler's node -> plugins/kv_events.py's messages, packed; (2) the same -> KvBook of a host, CPU time;
       (3) `ranks` hosts in another process, each with `blocks` blocks -> PlaneClients -> an index here: seconds until
       it is whole, and the longest that the hosts' loop, which sends tokens too, did not come round meanwhile
Out:   medians of ROUNDS; (3) is made once, as a frontend's start is
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from array import array
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

from disagg.kv_events.book import KvBook
from disagg.kv_events.events import At, Begun, Event, Removed, Stored, Telling, Tier, encode_telling
from disagg.plane.client import PlaneClient
from disagg.plane.engine import EngineFacts
from disagg.plane.server import PlaneServer
from disagg.roles import Role
from disagg.routing.endpoints import Endpoint, Engine
from disagg.routing.kv_feed import KvFeed
from disagg.routing.prefix_index.index import PrefixIndex

SECRET, BLOCK_TOKENS = b"b" * 32, 64
CONVERSATIONS, TURN_BLOCKS = 40, 5  # of one rank: each turn follows a turn of one of so many conversations
ROUNDS = 5
TICK_S = 0.001


def turns(blocks: int, random: Random) -> list[list[Event]]:
    """One round of a scheduler each: what a turn of a conversation adds."""
    last, rounds = [0] * CONVERSATIONS, list[list[Event]]()
    for name in range(1, blocks // TURN_BLOCKS + 1):
        ids = array("I", random.choices(range(100_000), k=TURN_BLOCKS * BLOCK_TOKENS)).tobytes()
        at = random.randrange(CONVERSATIONS)
        rounds.append([At(name, last[at], ids), Stored(name, TURN_BLOCKS * BLOCK_TOKENS, Tier.DEVICE)])
        last[at] = name
    return rounds


async def host(blocks: int) -> dict[str, float]:
    """Blocks a second that one core stores and evicts, from packed messages to changes for frontends."""
    rounds = turns(blocks, Random(1))
    packed = [encode_telling(Telling(0.0, events)) for events in rounds]
    gone = [encode_telling(Telling(0.0, [Removed(n, 320, Tier.DEVICE)])) for n in range(len(rounds), 0, -1)]
    stored, removed = list[float](), list[float]()
    for _ in range(ROUNDS):
        book = KvBook(SECRET, BLOCK_TOKENS)
        book.hear(0, encode_telling(Telling(0.0, [Begun(0)])), lambda: None)
        for tellings, times in ((packed, stored), (gone, removed)):
            began = time.thread_time()
            for telling in tellings:
                book.hear(0, telling, lambda: None)
            book.flush()
            times.append(time.thread_time() - began)
        assert book.blocks(0) == 0
    return {"stored_blocks_s": blocks / median(stored), "removed_blocks_s": blocks / median(removed)}


def scheduler() -> dict[str, float]:
    """What a scheduler pays for a node of 320 tokens: numbers, ids packed, and written."""
    ids, times = array("q", range(TURN_BLOCKS * BLOCK_TOKENS)), []
    for _ in range(ROUNDS):
        began = time.thread_time()
        for name in range(1, 2001):
            packed = array("I", ids[: len(ids)]).tobytes()
            encode_telling(Telling(0.0, [At(name, name - 1, packed), Stored(name, len(ids), Tier.DEVICE)]))
        times.append((time.thread_time() - began) / 2000)
    return {"node_us": median(times) * 1e6}


async def serve(ranks: int, blocks: int) -> None:
    """The hosts: one line of JSON with their ports; at the end of standard input the longest pause of the loop."""
    servers, ports = [], []
    for number in range(ranks):
        book = KvBook(SECRET, BLOCK_TOKENS)
        book.heard(0, [Begun(0)], lambda: None)
        for events in turns(blocks, Random(number)):
            book.heard(0, events, lambda: None)
        engine: Any = None
        servers.append(PlaneServer(engine, EngineFacts(), 1, SECRET, kv=book))
        ports.append(await servers[-1].start("127.0.0.1"))
    await asyncio.sleep(0.1)
    print(json.dumps(ports), flush=True)
    pauses: list[float] = []
    over = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    while not over.done():
        before = time.perf_counter()
        await asyncio.sleep(TICK_S)
        pauses.append(time.perf_counter() - before - TICK_S)
    print(max(pauses) * 1e3, flush=True)


async def start_anew(ranks: int, blocks: int) -> dict[str, float]:
    command = ["-m", "benchmarks.kv_events", "--serve", "--ranks", str(ranks), "--blocks", str(blocks)]
    pipe = asyncio.subprocess.PIPE
    hosts = await asyncio.create_subprocess_exec(sys.executable, *command, stdin=pipe, stdout=pipe)
    assert hosts.stdout is not None
    assert hosts.stdin is not None
    ports = json.loads(await hosts.stdout.readline())
    index, whole, longest_s = PrefixIndex(), asyncio.Event(), 0.0
    feeds, clients = list[KvFeed](), list[PlaneClient]()
    for slot, port in enumerate(ports):
        engine, nothing = Engine(f"engine-{slot}", f"engine-{slot}#1", Role.PREFILL, slot), None
        endpoint = Endpoint(engine, 0, "", nothing, nothing, slot=slot)  # type: ignore[arg-type]
        engine.endpoints = [endpoint]
        feed = KvFeed(engine, index, BLOCK_TOKENS, lambda: None)

        def on_kv(message: Any, feed: KvFeed = feed) -> None:
            nonlocal longest_s
            began = time.perf_counter()
            feed.on_kv(message)
            longest_s = max(longest_s, time.perf_counter() - began)
            if len(feeds) == ranks and all(each.is_whole for each in feeds):
                whole.set()

        feeds.append(feed)
        clients.append(PlaneClient(f"127.0.0.1:{port}", 1, SECRET, lambda _why: None, on_kv=on_kv))
    began, cpu = time.perf_counter(), time.thread_time()
    await asyncio.gather(*(client.connect() for client in clients))
    await whole.wait()
    seconds, cpu_s = time.perf_counter() - began, time.thread_time() - cpu
    held = sum(index.blocks_of(slot) for slot in range(ranks))
    for client in clients:
        client.close()
    hosts.stdin.close()
    pause_ms = float(await hosts.stdout.readline())
    await hosts.wait()
    return {
        "whole_after_s": seconds,
        "frontend_cpu_s": cpu_s,
        "blocks": held,
        "hosts_longest_pause_ms": pause_ms,
        "frontend_longest_frame_ms": longest_s * 1e3,
    }


async def _all(ranks: int, blocks: int) -> dict[str, float]:
    return scheduler() | await host(blocks) | await start_anew(ranks, blocks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=16)
    parser.add_argument("--blocks", type=int, default=20_000)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        asyncio.run(serve(given.ranks, given.blocks))
        return
    figures = asyncio.run(_all(given.ranks, given.blocks))
    for name, figure in figures.items():
        print(f"{name:30} {figure:12,.2f}")
    if given.json:
        given.json.write_text(json.dumps(figures))


if __name__ == "__main__":
    main()
