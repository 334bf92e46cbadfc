"""Setups side by side, loaded one at a time: what disaggregating costs, what it gives, what we add.

a  one bare SGLang server                            d  ours, aggregated
b  two bare SGLang servers in PD mode, driven here   c  ours, prefill and decode
u  as c, without its pace_ms; only if asked for

On one card all their engines share it, and there is room for seven: a and d have one, the others two. BENCH_SETUPS=bcu
says which are up, where that is not all but u. On two cards (BENCH_DEVICE="cuda x 2") a role has one of its own, d is
two aggregated engines, and there is no a.

Way:   engines with one shape and the same arguments start together -> warmed -> items (a cell, a round, a setup)
Out:   STATE/results/compare.json, a row an item as soon as it is there: a later call goes on where one stopped;
       of two cards two-cards-compare.json
In:    the same prompts for all of them in a round, new ones each round; the order of setups turns round each time
Burst: streams that decode while long prompts arrive: their inter-token latency meanwhile

Run:   python3 -m benchmarks.gpu.compare --seconds 500      (--up: start the servers and return at once)
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import httpx

from benchmarks.gpu.asking import Stream, body, follow, pair_requests
from benchmarks.gpu.environment import memory_used_mib
from benchmarks.gpu.places import STATE, Cell, aggregated_config, profile, results_path, write_result
from benchmarks.gpu.servers import Server, Wanted, bare, only, ours, running, status, until_ready
from benchmarks.gpu.shape import SHAPES, make_shape
from benchmarks.gpu.statistics import latencies
from benchmarks.load import STREAMED, Answer, drive, drive_legs, post
from benchmarks.prompts import random_prompts

BURST_ROUNDS = 3
START_S = 400.0
REQUEST_S = 120.0
PREFILL_TOKENS_S, DECODE_STEPS_S = 15_000, 60  # for guesses of how long an item takes
LANE_REQUESTS = 5
WARM_REQUESTS = 8
TOLD = ("took_s", "errors", "tok_s", "ttft_ms", "decoding")

Load = Callable[[list[list[int]], int, int, str], Coroutine[Any, Any, list[Answer]]]


@dataclass(frozen=True)
class Item:
    what: str  # a cell's name, or burst
    round: int
    setup: str
    cell: Cell


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=500.0, help="begin nothing that would end later")
    parser.add_argument("--only", default="", help="cells by name, or burst; comma-separated")
    parser.add_argument("--up", action="store_true", help="start the servers, do not wait")
    options = parser.parse_args()
    end_s = time.monotonic() + options.seconds
    wanted = _wanted()
    servers = dict(zip(wanted, only(wanted.values()), strict=True))
    if options.up:
        print("started:", ", ".join(servers))
        return
    took_s = until_ready(servers.values(), min(START_S, options.seconds))
    print("ready after", {name: round(seconds) for name, seconds in took_s.items()}, flush=True)
    asyncio.run(_measure(servers, options, end_s))


def _wanted() -> dict[str, Wanted]:
    it = profile()
    model = str(make_shape(it.shape, STATE / "models" / it.shape))
    aggregated, replicas = aggregated_config(it.config), f"aggregated.replicas={it.cards}"
    queue = ("routing.queue_max=4096", "deadlines.queue_s=600")
    servers = {
        "a": bare("a", it, model),
        "b-prefill": bare("b-prefill", it, model, "prefill"),
        "b-decode": bare("b-decode", it, model, "decode"),
        "c": ours("c", it.config, model, queue, of_shape=True),
        "u": ours("u", it.config, model, (*queue, "decode.pace_ms=null"), of_shape=True),
        "d": ours("d", aggregated, model, (*queue, replicas), of_shape=True),
    }
    return {name: server for name, server in servers.items() if name[0] in it.setups}


async def _measure(servers: dict[str, Server], options: argparse.Namespace, end_s: float) -> None:
    loads = {setup: _load(setup, servers) for setup in profile().setups}
    await _warm(servers, loads)
    memory = memory_used_mib()
    earlier = results_path("compare.json")
    rows: list[dict[str, Any]] = json.loads(earlier.read_bytes()) if earlier.exists() else []
    done = {(row["what"], row["round"], row["setup"]) for row in rows}
    took_s: dict[tuple[str, str], float] = {(row["what"], row["setup"]): row["took_s"] for row in rows}
    only_ = [name for name in options.only.split(",") if name]
    for item in _items():
        key = (item.what, item.round, item.setup)
        if key in done or (only_ and item.what not in only_):
            continue
        if time.monotonic() + took_s.get((item.what, item.setup), _guess_s(item.cell)) > end_s:
            print("no time for", *key)
            break
        began_s = time.monotonic()
        row: dict[str, Any] = {"what": item.what, "round": item.round, "setup": item.setup, "cell": asdict(item.cell)}
        row |= await (_burst if item.what == "burst" else _cell)(item, loads[item.setup])
        row |= {"took_s": round(time.monotonic() - began_s, 2), "memory_mib": memory}
        took_s[item.what, item.setup] = row["took_s"]
        rows.append(row)
        write_result("compare", rows)
        print(*key, json.dumps({name: row[name] for name in TOLD if name in row}))
    if "c" in servers:
        write_result("lane", await _lane(servers["c"]))


def _items() -> Iterator[Item]:
    """What matters least, the heaviest cell of the aggregated ones, last: if time runs out, it is there."""
    it = profile()
    *light, heavy = it.cells
    burst = Cell(it.burst.streams, it.burst.prompt, it.burst.output, it.burst.streams, BURST_ROUNDS)
    groups = [
        ([(cell.name, cell) for cell in light], it.setups),
        ([("burst", burst)], it.setups),
        ([(heavy.name, heavy)], [setup for setup in it.setups if setup not in "ad"]),
        ([(heavy.name, heavy)], [setup for setup in it.setups if setup in "ad"]),
    ]
    for named, setups in groups:
        for number in range(max(cell.rounds for _, cell in named)):
            for name, cell in named:
                if number < cell.rounds:
                    for setup in setups if number % 2 else reversed(setups):
                        yield Item(name, number, setup, cell)


def _guess_s(cell: Cell) -> float:
    steps = cell.output * cell.requests / cell.concurrency
    return cell.prompt * cell.requests / PREFILL_TOKENS_S + steps / DECODE_STEPS_S


def _load(setup: str, servers: dict[str, Server]) -> Load:
    async def plain(prompts: list[list[int]], tokens: int, concurrency: int, _seed: str) -> list[Answer]:
        url = servers[setup].url
        requests = [post(url, "/v1/completions", body(prompt, tokens, **STREAMED)) for prompt in prompts]
        return await drive(url, requests, concurrency, limit_s=REQUEST_S)

    async def pair(prompts: list[list[int]], tokens: int, concurrency: int, seed: str) -> list[Answer]:
        prefill, decode = servers["b-prefill"], servers["b-decode"]
        urls = (prefill.url, decode.url)
        requests = list(pair_requests(urls, prefill.bootstrap_port, prompts, tokens, seed))
        return await drive_legs(urls, requests, concurrency, limit_s=REQUEST_S)

    return pair if setup == "b" else plain


async def _warm(servers: dict[str, Server], loads: dict[str, Load]) -> None:
    """Once for these servers: each shape of the cells, so that kernels compile before time is taken."""
    mark = STATE / "run" / "warmed"
    born = json.dumps(sorted((server.name, server.born_s) for server in servers.values()))
    if mark.exists() and mark.read_text(encoding="utf-8") == born:
        return
    it = profile()
    for setup, load in loads.items():
        began_s = time.monotonic()
        shapes = {(min(cell.concurrency, WARM_REQUESTS), cell.prompt) for cell in it.cells}
        for count, prompt in sorted(shapes | {(1, it.burst.burst_prompt)}):
            seed = f"warm {setup} {count} {prompt}"
            for answer in await load(random_prompts(seed, count, prompt, _vocabulary()), 8, count, seed):
                if answer.error:
                    raise RuntimeError(f"{setup}, warm-up: {answer.error}")
        print("warmed", setup, f"{time.monotonic() - began_s:.1f} s", flush=True)
    mark.write_text(born, encoding="utf-8")


def _vocabulary() -> int:
    return int(SHAPES[profile().shape]["vocab_size"])


async def _cell(item: Item, load: Load) -> dict[str, Any]:
    cell = item.cell
    prompts = random_prompts(f"{item.what} {item.round}", cell.requests, cell.prompt, _vocabulary())
    answers = await load(prompts, cell.output, cell.concurrency, f"{item.what} {item.round} {item.setup}")
    good = [answer for answer in answers if not answer.error]
    errors = [answer.error for answer in answers if answer.error]
    if not good:
        return {"errors": len(errors), "error": errors[0]}
    wall_s = max(answer.ended_s for answer in good) - min(answer.sent_s for answer in good)
    tokens = sum(answer.completion_tokens or cell.output for answer in good)
    return {
        "errors": len(errors),
        "error": errors[0] if errors else "",
        "requests": len(good),
        "tok_s": tokens / wall_s,
        "ttft_ms": latencies(answer.ttft_s for answer in good),
        "itl_ms": latencies(gap for answer in good for gap in answer.gaps_s),
        "decoding": _decoding(good, wall_s),
    }


def _decoding(answers: list[Answer], wall_s: float) -> dict[str, float]:
    """Share of the time in which any answer is between its first token and its end; how many are, then."""
    busy_s = end_s = 0.0
    for answer in sorted(answers, key=lambda answer: answer.first_s):
        busy_s += max(0.0, answer.ended_s - max(end_s, answer.first_s))
        end_s = max(end_s, answer.ended_s)
    if not busy_s:
        return {}
    at_once = sum(answer.ended_s - answer.first_s for answer in answers) / busy_s
    return {"share": round(busy_s / wall_s, 3), "at_once": round(at_once, 2)}


async def _burst(item: Item, load: Load) -> dict[str, Any]:
    it = profile().burst
    seed = f"burst {item.round}"
    streams = random_prompts(seed, it.streams, it.prompt, _vocabulary())
    long = random_prompts(f"{seed} long", it.burst, it.burst_prompt, _vocabulary())
    decoding = asyncio.create_task(load(streams, it.output, it.streams, f"{seed} {item.setup}"))
    await asyncio.sleep(it.before_s)
    arrived_s = time.perf_counter()
    late = await load(long, 2, it.burst, f"{seed} {item.setup} long")
    read_s = max(answer.first_s for answer in late)
    answers = await decoding
    alone, meanwhile = list[float](), list[float]()
    for answer in answers:
        for before_s, after_s in answer.steps_s:
            overlaps = after_s > arrived_s and before_s < read_s
            (meanwhile if overlaps else alone).append(after_s - before_s)
    errors = [answer.error for answer in (*answers, *late) if answer.error]
    return {
        "errors": len(errors),
        "error": errors[0] if errors else "",
        "itl_ms": latencies(meanwhile),
        "itl_alone_ms": latencies(alone),
        "ttft_ms": latencies(answer.ttft_s for answer in late),
        "burst_s": read_s - arrived_s,
        # Of the first round, for the picture: milliseconds since the burst, and the gap that ended then.
        "gaps_ms": _timeline(answers, arrived_s) if item.round == 0 else [],
    }


def _timeline(answers: list[Answer], arrived_s: float) -> list[tuple[float, float]]:
    points = []
    for answer in answers:
        points += [(round((b - arrived_s) * 1e3, 1), round((b - a) * 1e3, 2)) for a, b in answer.steps_s]
    return sorted(points)


async def _lane(server: Server) -> dict[str, Any]:
    """What carries the KV in c, and what each transfer took by SGLang's own clocks."""
    it, found = profile(), []
    engines = status(server)
    for prompt in random_prompts(f"lane {time.time()}", LANE_REQUESTS, it.cells[-1].prompt, _vocabulary()):
        stream = Stream()
        await follow(server.url, prompt, 2, stream)
        await asyncio.sleep(0.5)  # prefill's last word may come after the answer's
        url = f"{server.url}/disagg/requests/{stream.request_id}"
        found.append(httpx.get(url, timeout=15.0, trust_env=False).json())
    return {"lanes": {name: engine["lane"] for name, engine in engines.items()}, "requests": found}


if __name__ == "__main__":
    try:
        main()
    finally:
        print("up:", ", ".join(server.name for server in running()))
