"""Load that no benchmark sends: many clients, prompts of any length, any sampling, and a quarter of them go midway.

Way:   the shipped configuration with the small model, then two bare SGLang servers with its engines' arguments: the
       same requests for both. A client sends one after the other until the time is over. An eighth of the requests is
       left (the connection closed), an eighth is cancelled by its id (where there is none yet, and at the bare servers:
       left), after some moments: while it waits, is read, moves or decodes
Out:   results/crowd.json: a row a setup: what became of the requests, TTFT, tokens a second, memory of the card; of
       ours whether all counts came back to zero, and the engines' lives
Fails: status 1 where one of ours was cut or failed, something is still counted LEFT_S later, or an engine died

Run:   python3 -m benchmarks.gpu.crowd [SECONDS]
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

import httpx

from benchmarks.gpu.asking import ROOM_BITS
from benchmarks.gpu.environment import memory_used_mib
from benchmarks.gpu.places import Profile, profile, shipped_engine, write_result
from benchmarks.gpu.servers import Server, bare, incarnations, only, ours, status, until_ready
from benchmarks.gpu.statistics import latencies
from benchmarks.load import STREAMED, Answer, Reader, connect, post
from disagg.models.resolve import resolve_model

CLIENTS, SECONDS, PROMPT_TOKENS_MAX, NEW_TOKENS_MAX = 192, 120.0, 7000, 200
CPU_CLIENTS, CPU_PROMPT_TOKENS_MAX = 8, 400
START_S, ANSWER_S = 300.0, 200.0
GOES_S = 1.5  # the mean of the moments after which a client goes, drawn from an exponential distribution
LEFT_S = 20.0
MEMORY_EVERY_S = 5.0
STOPS = ([" the"], ["\n\n", "!"], [" and", " of", "."])
Setup = tuple[Server, ...]  # ours; or a prefill and a decode


@dataclass(slots=True)
class Asked:
    """One request: what is sent, and when its client goes. `goes_s` 0: it stays."""

    body: dict[str, Any]
    goes_s: float = 0.0
    cancels: bool = False


@dataclass(slots=True)
class Seen:
    """What became of all requests of one setup."""

    became: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    answers: list[Answer] = field(default_factory=list)  # those that came whole
    tokens: int = 0  # of all, also of those that were left
    memory_mib: list[list[int]] = field(default_factory=list)


def main() -> int:
    it = profile()
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else SECONDS
    model = str(resolve_model(it.token_models[0]))
    result: dict[str, Any] = {}
    for name, setup in (("ours", _ours(it, model)), ("bare", _bare(it, model))):
        servers = only(setup)
        until_ready(servers, START_S)
        result[name] = asyncio.run(_load(it, tuple(servers), seconds))
        write_result("crowd", result)
        print(name, json.dumps(result[name], indent=1), flush=True)
    return 0 if result["ours"]["passed"] else 1


def requests(seed: str, longest: int, vocabulary: int) -> Iterator[Asked]:
    """Endless, the same for each setup; no two prompts begin alike."""
    random = Random(seed)
    while True:
        prompt = random.choices(range(300, vocabulary), k=random.randint(1, longest))
        body = {
            "model": "bench",
            "prompt": prompt,
            "max_tokens": random.randint(1, NEW_TOKENS_MAX),
            "ignore_eos": random.random() < 0.5,
            **_sampling(random),
            **STREAMED,
        }
        fate = random.random()
        yield Asked(body, random.expovariate(1 / GOES_S) if fate < 0.25 else 0.0, cancels=fate < 0.125)


def _sampling(random: Random) -> dict[str, Any]:
    choices: dict[str, Sequence[Any]] = {
        "temperature": (0.0, 0.3, 0.7, 1.0, 1.7),
        "top_p": (None, 0.1, 0.5, 0.95, 1.0),
        "top_k": (None, 1, 20, 1000),
        "min_p": (None, None, 0.05, 0.5),
        "frequency_penalty": (None, None, 1.2),
        "presence_penalty": (None, None, 0.7),
        "repetition_penalty": (None, None, 1.3),
        "seed": (None, random.getrandbits(31)),
        "stop": (None, None, *STOPS),
    }
    drawn = {name: random.choice(values) for name, values in choices.items()}
    return {name: value for name, value in drawn.items() if value is not None}


def _ours(it: Profile, model: str) -> list[Any]:
    queue = ("routing.queue_max=4096", "deadlines.queue_s=600")
    return [ours("crowd", it.config, model, queue)]


def _bare(it: Profile, model: str) -> list[Any]:
    """With the arguments of the shipped configuration, and the model's own weights."""
    loads = {name: value for name, value in it.shape_engine.items() if name != "load_format"}
    shipped = replace(it, shape_engine=loads if it.device == "cpu" else shipped_engine(it.config))
    found = []
    for mode in ("prefill", "decode"):
        wanted = bare(f"crowd-{mode}", shipped, model, mode)
        environment = {name: value for name, value in wanted.environment.items() if "ONE_LAYER" not in name}
        found.append(replace(wanted, environment=environment))
    return found


async def _load(it: Profile, setup: Setup, seconds: float) -> dict[str, Any]:
    is_cpu, is_ours = it.device == "cpu", len(setup) == 1
    before = incarnations(setup[0]) if is_ours else {}
    seen, vocabulary = Seen(), 40_000 if not is_cpu else 1000
    asked = requests("crowd", CPU_PROMPT_TOKENS_MAX if is_cpu else PROMPT_TOKENS_MAX, vocabulary)
    began_s = time.perf_counter()
    async with httpx.AsyncClient(trust_env=False, timeout=30.0) as other, asyncio.TaskGroup() as group:
        watching = group.create_task(_watch_memory(seen))
        clients = [
            group.create_task(_client(number, setup, asked, began_s + seconds, seen, other))
            for number in range(CPU_CLIENTS if is_cpu else CLIENTS)
        ]
        await asyncio.wait(clients)
        watching.cancel()
    lasted_s = time.perf_counter() - began_s
    row: dict[str, Any] = {
        "seconds": round(lasted_s, 1),
        "requests": seen.became.total(),
        "became": dict(seen.became),
        "errors": dict(seen.errors.most_common(10)),
        "tok_s": round(seen.tokens / lasted_s, 1),
        "ttft_ms": latencies(answer.ttft_s for answer in seen.answers),
        "itl_ms": latencies(gap for answer in seen.answers for gap in answer.gaps_s),
        "memory_mib": seen.memory_mib,
    }
    if is_ours:
        row["still_counted"] = await _still_counted(setup[0])
        after = incarnations(setup[0])
        row["died"] = [name for name, life in before.items() if after.get(name) != life]
        bad = seen.became["cut"] + seen.became["failed"]
        row["passed"] = not (bad or row["still_counted"] or row["died"])
    return row


async def _client(
    number: int, setup: Setup, asked: Iterator[Asked], until_s: float, seen: Seen, other: httpx.AsyncClient
) -> None:
    rooms = Random(f"rooms {number}")
    readers: list[Reader] = []
    while time.perf_counter() < until_s:
        request = next(asked)
        meet: dict[str, Any] = {}
        if len(setup) > 1:
            room = rooms.getrandbits(ROOM_BITS)
            meet = {"bootstrap_host": "127.0.0.1", "bootstrap_port": setup[0].bootstrap_port, "bootstrap_room": room}
        if not readers or any(reader.is_lost for reader in readers):
            readers = [await connect(server.url, False) for server in setup]
        sent = [
            reader.send(post(server.url, "/v1/completions", request.body | meet))
            for reader, server in zip(readers, setup, strict=True)
        ]
        _count(seen, sent[-1], await _until_it_is_over(request, readers, sent, setup[0], other))


async def _until_it_is_over(
    request: Asked, readers: list[Reader], sent: list[Answer], server: Server, other: httpx.AsyncClient
) -> str:
    """What became of it."""
    ended = asyncio.gather(*(reader.ended for reader in readers))
    try:
        await asyncio.wait_for(asyncio.shield(ended), request.goes_s or ANSWER_S)
    except TimeoutError:
        if not request.goes_s:
            sent[-1].error = f"no end within {ANSWER_S:g} s"
        elif request.cancels and len(readers) == 1 and (name := sent[-1].request_id):
            await other.delete(f"{server.url}/v1/requests/{name}")
            await asyncio.wait([ended], timeout=ANSWER_S)
            return "cancelled"
        for reader in readers:
            reader.drop()
        if request.goes_s:
            return "left"
    if error := next((answer.error for answer in sent if answer.error), ""):
        sent[-1].error = error
        return "failed"
    return "whole" if sent[-1].is_done and sent[-1].completion_tokens else "cut"


def _count(seen: Seen, answer: Answer, became: str) -> None:
    seen.became[became] += 1
    seen.tokens += answer.completion_tokens or sum(answer.events)
    if became == "whole":
        seen.answers.append(answer)
    elif became == "failed":
        seen.errors[answer.error[:200]] += 1


async def _watch_memory(seen: Seen) -> None:
    while True:
        seen.memory_mib.append(await asyncio.to_thread(memory_used_mib))
        await asyncio.sleep(MEMORY_EVERY_S)


async def _still_counted(server: Server) -> dict[str, Any]:
    """What is counted as running, or as KV in use, LEFT_S after the last answer; empty: nothing."""
    until_s = time.monotonic() + LEFT_S
    while True:
        left: dict[str, Any] = {name: engine["in_flight"] for name, engine in status(server).items()}
        loads = httpx.get(f"{server.url}/disagg/loads", timeout=15.0, trust_env=False).json()
        left |= _used(loads)
        left = {name: count for name, count in left.items() if count}
        if not left or time.monotonic() > until_s:
            return left
        await asyncio.sleep(0.5)


def _used(loads: dict[str, Any]) -> dict[str, int]:
    """Engine's life and dp rank -> tokens of KV that nobody could take now, requests that run or wait."""
    found = {}
    for life, ranks in loads.items():
        for rank in ranks:
            where = f"{life}/{rank['dp_rank']}"
            found[f"{where} KV tokens"] = rank["kv_tokens_used"]
            found[f"{where} requests"] = rank["running"] + rank["waiting"]
    return found


if __name__ == "__main__":
    sys.exit(main())
