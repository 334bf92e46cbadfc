"""Do prefill and decode on the card give the tokens that one aggregated engine gives, also after restarts?

Way:   two deployments of one model, PD and aggregated -> the same prompts, one at a time, greedy -> compared
In:    text of this project, cut to lengths; in each pass another one, so that no prefix is cached on either side
Out:   results/tokens-MODEL.json. An answer that differs is asked again on both, and a bare engine tells the
       likeliest tokens where the two part (candidates.py)
Passes: as started; after a drain and restart of each side; after a SIGKILL of each, and of both. Of further models
       only the first and the last

Run:   python3 -m benchmarks.gpu.tokens [MODEL…]      (all of them at once, each on engines of its own)
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from typing import Any

import httpx
from tokenizers import Tokenizer

from benchmarks.gpu.asking import Stream, follow, generate
from benchmarks.gpu.places import PROJECT, Profile, aggregated_config, profile, write_result
from benchmarks.gpu.servers import Server, bare_environment, only, ours, status, until_ready
from benchmarks.load import ANSWER_S
from disagg.models.resolve import resolve_model

START_S, RESTART_S, AGAIN, CANDIDATES_S = 240.0, 150.0, 3, 120.0
Passes = tuple[tuple[str, str, tuple[str, ...]], ...]  # name, how, which engines
PASSES: Passes = (
    ("as started", "", ()),
    ("prefill drained and restarted", "drain", ("prefill-0",)),
    ("decode drained and restarted", "drain", ("decode-0",)),
    ("prefill killed", "kill", ("prefill-0",)),
    ("decode killed", "kill", ("decode-0",)),
    ("both killed", "kill", ("prefill-0", "decode-0")),
)
FEW = (PASSES[0], PASSES[-1])


def main() -> None:
    it = profile()
    models = sys.argv[1:] or list(it.token_models)
    wanted = [
        (
            ours(f"pd-{model}", it.config, model, it.tokens_sets),
            ours(f"agg-{model}", aggregated_config(it.config), model),
        )
        for model in models
    ]
    servers = only(one for pair in wanted for one in pair)
    asyncio.run(_all(it, [(model, servers[2 * i], servers[2 * i + 1]) for i, model in enumerate(models)]))


async def _all(it: Profile, deployments: list[tuple[str, Server, Server]]) -> None:
    """A model that fails is told, and stops no other; the status is then 1."""
    failed: list[str] = []
    works = [_compare(it, *each, FEW if number else PASSES) for number, each in enumerate(deployments)]
    for (model, _, _), ended in zip(deployments, await asyncio.gather(*works, return_exceptions=True), strict=True):
        if isinstance(ended, BaseException):
            print(f"{model}: {type(ended).__name__}: {ended}", flush=True)
            failed.append(model)
    if failed:
        raise SystemExit(1)


async def _compare(it: Profile, model: str, pd: Server, aggregated: Server, passes: Passes) -> None:
    await asyncio.to_thread(until_ready, [pd, aggregated], START_S)
    text = text_ids(model)
    rows: list[dict[str, Any]] = []
    for number, (name, how, engines) in enumerate(passes):
        took_s = await _restart(pd, how, engines) if how else 0.0
        row: dict[str, Any] = {"pass": name, "restart_s": round(took_s, 1), "equal": 0, "asked": 0, "different": []}
        row["pairs"] = pairs = Counter[str]()
        rows.append(row)
        for index, length in enumerate(it.prompt_tokens):
            start = (number * len(it.prompt_tokens) + index) * 911 % (len(text) - length)
            prompt = text[start : start + length]
            # The pair first: the first request after a restart is the one to watch.
            ours_ids, pair = await _pd(pd.url, prompt, it.answer_tokens)
            pairs[pair] += 1
            theirs = await generate(aggregated.url, prompt, it.answer_tokens)
            row["asked"] += 1
            row["equal"] += ours_ids == theirs
            if ours_ids != theirs:
                row["different"].append(await _explained(it, model, prompt, ours_ids, theirs, pd, aggregated))
            write_result(f"tokens-{model}", rows)
        print(model, name, f"{row['equal']} of {row['asked']} equal, restart {took_s:.1f} s, {dict(pairs)}", flush=True)


async def _pd(url: str, prompt: list[int], tokens: int) -> tuple[list[int], str]:
    """The ids, and the ranks that made them: `0-1` is prefill's first and decode's second."""
    stream = Stream()
    await follow(url, prompt, tokens, stream)
    if stream.error:
        raise RuntimeError(stream.error)
    async with httpx.AsyncClient(trust_env=False, timeout=ANSWER_S) as client:
        routed = (await client.get(f"{url}/disagg/requests/{stream.request_id}")).json()
    return stream.ids, "-".join(str(routed[role]).rpartition("/")[2] for role in ("prefill", "decode"))


def text_ids(model: str) -> list[int]:
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted((PROJECT / "docs").glob("*.md")))
    ids: list[int] = Tokenizer.from_file(str(resolve_model(model) / "tokenizer.json")).encode(text).ids
    return ids


async def _restart(server: Server, how: str, engine_ids: tuple[str, ...]) -> float:
    """Seconds until all of them are READY again, as new incarnations."""
    before = status(server)
    began_s = time.monotonic()
    for engine_id in engine_ids:
        if how == "drain":
            command = [sys.executable, "-m", "disagg.cli.main", "drain", engine_id, "--restart", "--wait"]
            words = [*command, "--url", server.url]
            await asyncio.to_thread(subprocess.run, words, cwd=PROJECT, check=True, timeout=RESTART_S)
        else:
            os.kill(before[engine_id]["pids"]["host"], signal.SIGKILL)
    await until_back(server, {engine_id: before[engine_id]["incarnation"] for engine_id in engine_ids}, RESTART_S)
    return time.monotonic() - began_s


async def until_back(server: Server, incarnations: dict[str, int], limit_s: float) -> None:
    """All engines are READY, and these in a later incarnation."""
    async with asyncio.timeout(limit_s):
        while True:
            engines = await asyncio.to_thread(status, server)
            newer = all(engines[name]["incarnation"] > before for name, before in incarnations.items())
            if newer and all(engine["state"] == "ready" for engine in engines.values()):
                return
            await asyncio.sleep(0.1)


async def _explained(
    it: Profile, model: str, prompt: list[int], ours_ids: list[int], theirs: list[int], pd: Server, aggregated: Server
) -> dict[str, Any]:
    at = next((i for i, (a, b) in enumerate(zip(ours_ids, theirs, strict=False)) if a != b), None)
    again = {
        server.name: [await generate(server.url, prompt, it.answer_tokens) for _ in range(AGAIN)]
        for server in (pd, aggregated)
    }
    said: dict[str, Any] = {"prompt": prompt, "pd": ours_ids, "aggregated": theirs, "parts_at": at, "again": again}
    if at is not None:
        said["candidates"] = await asyncio.to_thread(_candidates, it, model, prompt + theirs[:at])
    return said


def _candidates(it: Profile, model: str, ids: list[int]) -> Any:
    """The likeliest next tokens by a bare engine of the same arguments; or why they are not known."""
    asked = json.dumps({"model": str(resolve_model(model)), "config": it.config, "device": it.device, "ids": ids})
    command = [sys.executable, "-m", "benchmarks.gpu.candidates"]
    environment = os.environ | bare_environment("candidates", it)
    try:
        done = subprocess.run(
            command, input=asked, env=environment, cwd=PROJECT, capture_output=True, text=True, timeout=CANDIDATES_S
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {CANDIDATES_S:g} s"
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else done.stderr[-1500:]


if __name__ == "__main__":
    main()
