"""SIGKILL a decode engine's host amid streams, round after round: what becomes of the streams, the engine, the card.

Way:   ours with two decode engines -> streams on both -> SIGKILL one host, in turns -> the streams' ends, READY again
Out:   results/kill.json, a round at a time: streams that ended whole and as they would have without the kill, the
       longest pause of each, seconds until READY, processes left behind, the card's memory once all is well again

Run:   python3 -m benchmarks.gpu.kill [ROUNDS]
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from itertools import pairwise
from typing import Any

import psutil

from benchmarks import processes
from benchmarks.gpu.asking import Stream, follow
from benchmarks.gpu.environment import memory_used_mib
from benchmarks.gpu.places import Profile, profile, write_result
from benchmarks.gpu.servers import Server, only, ours, status, until_ready
from benchmarks.gpu.statistics import latencies
from benchmarks.gpu.tokens import text_ids, until_back
from disagg.lives import life_of

ROUNDS, STREAMS, PROMPT_TOKENS = 5, 8, 200
START_S, BACK_S, SETTLE_S = 240.0, 150.0, 4.0


def main() -> None:
    it = profile()
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    (server,) = only([ours("kill", it.config, it.token_models[0], it.kill_sets)])
    until_ready([server], START_S)
    asyncio.run(_rounds(it, server, rounds))


async def _rounds(it: Profile, server: Server, rounds: int) -> None:
    text = text_ids(it.token_models[0])
    # One prompt for each stream, the same every round: answers can be compared.
    prompts = [text[i * 997 : i * 997 + PROMPT_TOKENS] for i in range(STREAMS)]
    await until_back(server, {engine: 0 for engine in status(server)}, BACK_S)  # one pair is enough to be served
    for _ in range(2):  # the first puts the prompts into the prefix cache, for all rounds alike
        undisturbed = await _fill(it, server, prompts, [Stream() for _ in prompts])
    rows: list[dict[str, Any]] = [{"round": "undisturbed", **_judged(it, undisturbed, undisturbed)}]
    write_result("kill", rows)
    for number in range(rounds):
        rows.append({"round": number, **await _round(it, server, prompts, undisturbed, f"decode-{number % 2}")})
        write_result("kill", rows)
        print({name: value for name, value in rows[-1].items() if name != "streams"}, flush=True)


async def _round(
    it: Profile, server: Server, prompts: list[list[int]], undisturbed: list[Stream], victim: str
) -> dict[str, Any]:
    before = status(server)[victim]
    pids = before["pids"]
    tree = {pid: psutil.Process(pid) for pid in processes.tree(pids["reaper"])}
    streams = [Stream() for _ in prompts]
    running = asyncio.create_task(_fill(it, server, prompts, streams))
    while min(len(stream.ids) for stream in streams) < it.kill_tokens // 8:
        await asyncio.sleep(0.005)
        if running.done():
            break
    on_victim = sum(status(server)[victim]["in_flight_by_rank"])
    killed_s, kill_at_s = time.monotonic(), asyncio.get_running_loop().time()
    os.kill(pids["host"], signal.SIGKILL)
    back = asyncio.create_task(until_back(server, {victim: before["incarnation"]}, BACK_S))
    await running
    await back
    ready_s = time.monotonic() - killed_s
    await asyncio.sleep(SETTLE_S)
    left = [pid for pid, process in tree.items() if process.is_running() and process.status() != "zombie"]
    return {
        "victim": victim,
        "streams_on_victim": on_victim,
        "ready_again_s": round(ready_s, 2),
        "left_behind": left + _lives(life_of(before["id"], before["incarnation"])),
        **_judged(it, streams, undisturbed, kill_at_s),
    }


async def _fill(it: Profile, server: Server, prompts: list[list[int]], streams: list[Stream]) -> list[Stream]:
    pairs = zip(prompts, streams, strict=True)
    await asyncio.gather(*(follow(server.url, prompt, it.kill_tokens, stream) for prompt, stream in pairs))
    return streams


def _judged(it: Profile, streams: list[Stream], undisturbed: list[Stream], kill_at_s: float = 0.0) -> dict[str, Any]:
    rows = []
    for stream, other in zip(streams, undisturbed, strict=True):
        parts_at = next((i for i, (a, b) in enumerate(zip(stream.ids, other.ids, strict=False)) if a != b), None)
        at_kill = sum(at_s <= kill_at_s for at_s in stream.came_s)
        row: dict[str, Any] = {
            "tokens": len(stream.ids),
            "whole": len(stream.ids) == it.kill_tokens and stream.reason == "length" and not stream.error,
            "as_undisturbed": stream.ids == other.ids,
            "parts_at": parts_at,
            "events_at_kill": at_kill,
            "longest_pause_ms": round(max((b - a for a, b in pairwise(stream.came_s)), default=0.0) * 1e3, 1),
            "error": stream.error,
        }
        rows.append(row)
    gaps = [b - a for stream in streams for a, b in pairwise(stream.came_s)]
    return {
        "whole": sum(bool(row["whole"]) for row in rows),
        "as_undisturbed": sum(bool(row["as_undisturbed"]) for row in rows),
        "longest_pause_ms": max(row["longest_pause_ms"] for row in rows),
        "itl_ms": latencies(gaps),
        "streams": rows,
        "memory_used_mib": memory_used_mib(),
    }


def _lives(life: str) -> list[int]:
    """Processes that say they are of this incarnation. SGLang's write over their environment: hence the tree, too."""
    from disagg.host_spec import LIFE_VARIABLE

    every = psutil.process_iter(["environ"])
    return [each.pid for each in every if (each.info["environ"] or {}).get(LIFE_VARIABLE) == life]


if __name__ == "__main__":
    main()
