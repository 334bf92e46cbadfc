"""What is kept on the card: adapters beside one model; prefixes that are routed to, loaded back, or not moved again.

Way:   four parts, each on deployments of its own with the shipped configuration; adapters over the small model, the
       others with the shape, whose prompts cost something:
       adapters   two adapters and the model itself, PD beside aggregated, each alone, then all at once; one's ITL
       routed     two prefill engines, KV events: where a prompt goes that one of them has
       host       a prefill engine with HiCache and a small pool: prefixes that came back from the host's memory
       decode     decode's radix cache: what a repeated prompt moves
Out:   results/reuse.json: a part as soon as it is there; a part that cannot start says why, and the others go on
Fails: status 1 where an answer is no 200, an engine died, or what should be kept is not. Other tokens than the
       aggregated engine's are told and do not fail: on a card two batches may round otherwise

Run:   python3 -m benchmarks.gpu.reuse [PART[,PART]]
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from statistics import median
from typing import Any

import httpx

from benchmarks.gpu.places import STATE, Profile, aggregated_config, profile, results_path, write_result
from benchmarks.gpu.servers import NotReady, Server, Wanted, incarnations, only, ours, status, until_ready
from benchmarks.gpu.shape import make_shape
from benchmarks.load import STREAMED, drive, post
from benchmarks.prompts import random_prompts
from disagg.models.random_adapter import make_adapter

START_S, ANSWER_S, WORD_S = 280.0, 120.0, 5.0
MODEL = "smollm2"
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ADAPTERS, RANK = ("a", "b"), 16
VOCABULARY = 1000  # ids of any model here
PROMPTS, TOKENS = 6, 48
LONG, ROUTED, REPEATS = 2000, 8, 3
HOST_POOL, HOST_PROMPTS = 16_384, 12  # tokens on the device; prompts of LONG tokens, in all more than that
STREAM_TOKENS, STREAMS = 400, 3


def main() -> int:
    it = profile()
    named = sys.argv[1].split(",") if len(sys.argv) > 1 else list(PARTS)
    earlier = results_path("reuse.json")
    found: dict[str, Any] = json.loads(earlier.read_bytes()) if earlier.exists() else {}
    for name in named:
        began_s = time.monotonic()
        try:
            found[name] = asyncio.run(PARTS[name](it))
        except (NotReady, httpx.HTTPError, RuntimeError) as error:
            found[name] = {"wrong": [f"{type(error).__name__}: {str(error)[-1500:]}"]}
        write_result("reuse", found)
        print(f"--- {name}, {time.monotonic() - began_s:.0f} s\n{json.dumps(found[name], indent=1)}", flush=True)
    return 1 if any(found[name]["wrong"] for name in named) else 0


class Client:
    """One deployment, asked greedily."""

    def __init__(self, http: httpx.AsyncClient, server: Server) -> None:
        self._http, self._server = http, server

    async def ask(self, prompt: list[int], tokens: int, model: str = "bench") -> dict[str, Any]:
        """The answer's ids, how long it took, and the timeline. Raises RuntimeError."""
        began_s = time.perf_counter()
        body = {"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
        answer = await self._http.post(f"{self._server.url}/v1/completions", json=body | {"return_token_ids": True})
        took_ms = (time.perf_counter() - began_s) * 1e3
        if answer.status_code != httpx.codes.OK:
            raise RuntimeError(f"{model} {len(prompt)}: {answer.status_code}: {answer.text[:300]}")
        said = answer.json()
        timeline = await self._timeline(answer.headers["x-request-id"])
        return {"ids": said["choices"][0]["token_ids"], "took_ms": round(took_ms, 1), "timeline": timeline}

    async def _timeline(self, request: str) -> dict[str, Any]:
        """With prefill's last word, which may come after the answer."""
        until_s = time.monotonic() + WORD_S
        while True:
            found = dict((await self._http.get(f"{self._server.url}/disagg/requests/{request}")).json())
            if found.get("cached_tokens") is not None or time.monotonic() > until_s:
                return found
            await asyncio.sleep(0.02)


def _http() -> httpx.AsyncClient:
    return httpx.AsyncClient(trust_env=False, timeout=ANSWER_S, limits=httpx.Limits(max_connections=64))


def _started(*wanted: Wanted) -> list[Server]:
    """All engines of all of them serve."""
    servers, until_s = only(wanted), time.monotonic() + START_S
    until_ready(servers, START_S)
    while not all(engine["state"] == "ready" for server in servers for engine in status(server).values()):
        if time.monotonic() > until_s:
            raise NotReady(f"not all engines are ready within {START_S:g} s")
        time.sleep(0.25)
    return servers


def _of_shape(name: str, config: str, sets: Sequence[str] = ()) -> Wanted:
    shape = profile().shape
    return ours(name, config, str(make_shape(shape, STATE / "models" / shape)), sets, of_shape=True)


async def _adapters(it: Profile) -> dict[str, Any]:
    lora = ["model.lora.max_lora_rank=16", f"model.lora.target_modules=[{','.join(MODULES)}]"]
    for seed, name in enumerate(ADAPTERS):
        folder = STATE / "adapters" / f"{MODEL}-{name}"
        if not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            await asyncio.to_thread(make_adapter, MODEL, folder, RANK, MODULES, seed)
        lora.append(f"model.lora.adapters.{name}={folder}")
    pd, one, plain = await asyncio.to_thread(
        _started,
        ours("reuse-lora", it.config, MODEL, lora),
        ours("reuse-lora-agg", aggregated_config(it.config), MODEL, lora),
        ours("reuse-plain", it.config, MODEL),
    )
    names = ["bench", *(f"bench:{name}" for name in ADAPTERS)]
    prompts = random_prompts("adapters", PROMPTS, 200, VOCABULARY)
    async with _http() as http:
        pair, single = Client(http, pd), Client(http, one)
        before = incarnations(pd)
        alone = {(n, i): (await pair.ask(p, TOKENS, n))["ids"] for n in names for i, p in enumerate(prompts)}
        aggregated = {(n, i): (await single.ask(p, TOKENS, n))["ids"] for n in names for i, p in enumerate(prompts)}
        at_once = [(n, i, pair.ask(p, TOKENS, n)) for _ in range(REPEATS) for n in names for i, p in enumerate(prompts)]
        together = await asyncio.gather(*(asked for _, _, asked in at_once))
        died = before != incarnations(pd)
    same = sum(alone[key] == aggregated[key] for key in alone)
    as_alone = sum(answer["ids"] == alone[n, i] for (n, i, _), answer in zip(at_once, together, strict=True))
    distinct = {tuple(alone[n, 0]) for n in names}
    wrong = ["an engine died"] * died
    wrong += ["an adapter says what the model says"] * (len(distinct) < len(names))
    itl = {"plain": await _itl_ms(plain.url, "bench")} | {n: await _itl_ms(pd.url, n) for n in names}
    return {
        "wrong": wrong,
        "same_as_aggregated": f"{same} of {len(alone)}",
        "together_as_alone": f"{as_alone} of {len(at_once)}",
        "itl_ms_of_one_stream": itl,
    }


async def _itl_ms(url: str, model: str) -> float:
    """The median of a stream's gaps, of several streams one after the other."""
    requests = [
        post(
            url,
            "/v1/completions",
            {"model": model, "prompt": p, "max_tokens": STREAM_TOKENS, "temperature": 0, "ignore_eos": True} | STREAMED,
        )
        for p in random_prompts(f"itl {model}", STREAMS, 100, VOCABULARY)
    ]
    answers = await drive(url, requests, 1)
    if error := next((answer.error for answer in answers if answer.error), ""):
        raise RuntimeError(error)
    return round(median(gap for answer in answers for gap in answer.gaps_s) * 1e3, 3)


async def _routed(it: Profile) -> dict[str, Any]:
    sets = ["prefill.replicas=2"]
    if it.device == "cuda":
        sets += [f"{role}.resources.gpus=0.3" for role in ("prefill", "decode")]
    (server,) = await asyncio.to_thread(_started, _of_shape("reuse-routed", it.config, sets))
    rows, wrong = [], []
    async with _http() as http:
        client = Client(http, server)
        before = incarnations(server)
        prompts = random_prompts("routed", ROUTED, LONG, VOCABULARY)
        firsts = [await client.ask(prompt, 2) for prompt in prompts]
        for first, prompt in zip(firsts, prompts, strict=True):
            for _ in range(REPEATS):
                again = await client.ask(prompt, 2)
                rows.append((first, again))
        if before != incarnations(server):
            wrong.append("an engine died")
    there = [again["timeline"]["prefill"] == first["timeline"]["prefill"] for first, again in rows]
    least = LONG - 64
    cached = [again["timeline"]["cached_tokens"] >= least for _, again in rows]
    believed = [again["timeline"]["routed"]["cached_tokens"] >= least for _, again in rows]
    if not all(there) or not all(cached):
        wrong.append("a prompt went where it is not cached")
    return {
        "wrong": wrong,
        "where_it_is_cached": f"{sum(there)} of {len(rows)}",
        "confirmed_by_the_engine": f"{sum(cached)} of {len(rows)}",
        "believed": f"{sum(believed)} of {len(rows)}",
        "first_on": sorted(first["timeline"]["prefill"] for first in firsts),
        "first_ms": median(first["took_ms"] for first in firsts),
        "again_ms": median(again["took_ms"] for _, again in rows),
        "one_of_each": [each["timeline"] for each in rows[-1]],
    }


async def _host(it: Profile) -> dict[str, Any]:
    engine = {"enable_hierarchical_cache": "true", "hicache_ratio": "4", "max_total_tokens": str(HOST_POOL)}
    sets = [f"prefill.engine.{key}={value}" for key, value in engine.items()]
    (server,) = await asyncio.to_thread(_started, _of_shape("reuse-host", it.config, sets))
    async with _http() as http:
        client = Client(http, server)
        before = incarnations(server)
        prompts = random_prompts("host", HOST_PROMPTS, LONG, VOCABULARY)
        passes = [[await client.ask(prompt, 8) for prompt in prompts] for _ in range(3)]
        anew = [await client.ask(prompt, 8) for prompt in random_prompts("host anew", HOST_PROMPTS, LONG, VOCABULARY)]
        died = before != incarnations(server)
    cached = [[each["timeline"]["cached_tokens"] for each in one] for one in passes]
    equal = [a["ids"] == b["ids"] == c["ids"] for a, b, c in zip(*passes, strict=True)]
    wrong = ["an engine died"] * died
    if sum(cached[2]) < HOST_PROMPTS * (LONG - 64) // 2:
        wrong.append("less than half came back")
    return {
        "wrong": wrong,
        "cached_tokens": cached,
        "believed_tokens": [each["timeline"]["routed"]["cached_tokens"] for each in passes[2]],
        "equal_tokens": f"{sum(equal)} of {len(equal)}",
        "anew_ms": median(each["took_ms"] for each in anew),
        "again_ms": median(each["took_ms"] for each in passes[2]),
    }


async def _decode(it: Profile) -> dict[str, Any]:
    radix = ["decode.engine.disaggregation_decode_enable_radix_cache=true"]
    pd, one = await asyncio.to_thread(
        _started,
        _of_shape("reuse-decode", it.config, radix),
        _of_shape("reuse-agg", aggregated_config(it.config)),
    )
    prompts = random_prompts("decode", PROMPTS, LONG, VOCABULARY)
    async with _http() as http:
        pair, single = Client(http, pd), Client(http, one)
        before = incarnations(pd)
        meant = [(await single.ask(prompt, TOKENS))["ids"] for prompt in prompts]
        passes = [[await pair.ask(prompt, TOKENS) for prompt in prompts] for _ in range(1 + REPEATS)]
        died = before != incarnations(pd)
    moved = [[each["timeline"].get("kv_bytes") or 0 for each in one] for one in passes]
    same = sum(each["ids"] == ids for one in passes for each, ids in zip(one, meant, strict=True))
    wrong = ["an engine died"] * died
    wrong += ["a repeated prompt was moved again"] * (sum(moved[-1]) > sum(moved[0]) // 10)
    return {
        "wrong": wrong,
        "kv_bytes": moved,
        "same_as_aggregated": f"{same} of {len(passes) * len(prompts)}",
        "took_ms": [median(each["took_ms"] for each in one) for one in passes],
    }


PARTS: dict[str, Callable[[Profile], Coroutine[Any, Any, dict[str, Any]]]] = {
    "adapters": _adapters,
    "routed": _routed,
    "host": _host,
    "decode": _decode,
}


if __name__ == "__main__":
    sys.exit(main())
