"""Random sampling parameters on real engines: every request answered or refused by name, and no engine dead.

Way:   the shipped configuration, once with each sampling backend -> the campaign of benchmarks/random_requests.py; then
       the request that used to kill an engine, raw; then a NaN in the logits of one stream beside a greedy one
Out:   results/random_requests.json, a backend at a time, and a table of each. Where a backend cannot be brought here
       the reason stands in its place
Cost:  on an H200 two starts of a deployment; flashinfer's kernels compile (nvcc, ninja) while the first one serves

Run:   python3 -m benchmarks.gpu.random_requests [BACKEND[,BACKEND]]      (pytorch,flashinfer; without a GPU pytorch)
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from typing import Any

import httpx

from benchmarks.gpu.asking import Stream, follow
from benchmarks.gpu.environment import memory_used_mib
from benchmarks.gpu.places import LOGS, STATE, Profile, profile, results_path, write_result
from benchmarks.gpu.servers import NotReady, Server, incarnations, only, ours, until_ready
from benchmarks.gpu.tokens import text_ids
from benchmarks.random_requests import SEED, campaign
from disagg.sglang.plugins.faults import NAN_VARIABLE

START_S, COMPILE_S, STREAM_S = 240.0, 240.0, 90.0
CONCURRENCY = 24
NAN_FILE = STATE / "nan"
NAN_TEMPERATURE = 1.75  # of the sick stream alone
BEGUN = 4  # tokens of it, before its logits become NaN
COMPILE = "from flashinfer.jit.sampling import gen_sampling_module as module; module().build_and_load()"
POISON = {
    "model": "bench",
    "messages": [{"role": "user", "content": "Count to three."}],
    "max_tokens": 20,
    "ignore_eos": True,
    "temperature": 1,
    "top_p": 1,
    "top_k": -1,
    "repetition_penalty": 1e-40,
}


def main() -> int:
    it = profile()
    named = sys.argv[1] if len(sys.argv) > 1 else "pytorch,flashinfer" if it.device == "cuda" else "pytorch"
    backends = named.split(",")
    compiler = _Compiler() if "flashinfer" in backends else None
    earlier = results_path("random_requests.json")  # of another backend, from another call
    found: dict[str, Any] = json.loads(earlier.read_bytes()) if earlier.exists() else {}
    for backend in backends:
        began_s = time.monotonic()
        try:
            compiled = compiler.wait() if compiler and backend == "flashinfer" else {}
            server, ready_s = _serve(it, backend)
            found[backend] = {**compiled, "ready_s": ready_s, **asyncio.run(_ask(it, server))}
        except (NotReady, httpx.HTTPError) as error:
            found[backend] = {"passed": False, "reason": f"{type(error).__name__}: {error}"}
        print(f"--- {backend}, {time.monotonic() - began_s:.0f} s", _table(found[backend]), sep="\n", flush=True)
        write_result("random_requests", found)
    return 0 if all(found[backend]["passed"] for backend in backends) else 1


class _Compiler:
    """flashinfer's sampling kernels, compiled into the folder that travels (run.sh), while something else runs."""

    def __init__(self) -> None:
        LOGS.mkdir(parents=True, exist_ok=True)
        self._began_s = time.monotonic()
        self._log = LOGS / "flashinfer.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen([sys.executable, "-c", COMPILE], stdout=log, stderr=subprocess.STDOUT)

    def wait(self) -> dict[str, Any]:
        """Since it was begun, so this holds what else ran meanwhile. Raises NotReady with the compiler's last words."""
        try:
            failed = self._process.wait(COMPILE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            failed = 124
        if failed:
            said = self._log.read_text(errors="replace")[-1500:]
            raise NotReady(f"flashinfer's sampling kernels could not be compiled (status {failed}):\n{said}")
        return {"compiled_s": round(time.monotonic() - self._began_s, 1)}


def _serve(it: Profile, backend: str) -> tuple[Server, float]:
    NAN_FILE.parent.mkdir(parents=True, exist_ok=True)
    NAN_FILE.unlink(missing_ok=True)
    sets = [f"{role}.engine.sampling_backend={backend}" for role in ("prefill", "decode")]
    wanted = ours(f"random-{backend}", it.config, it.token_models[0], sets, environment={NAN_VARIABLE: str(NAN_FILE)})
    (server,) = only([wanted])
    return server, round(until_ready([server], START_S)[server.name], 1)


async def _ask(it: Profile, server: Server) -> dict[str, Any]:
    before = incarnations(server)
    result = await campaign(server.url, it.random_requests, CONCURRENCY, SEED, "bench")
    poison = await _poison(server)
    not_a_number = await _not_a_number(it, server)
    after = incarnations(server)
    died = {name: after.get(name, -1) - number for name, number in before.items() if after.get(name) != number}
    return {
        "requests": result.requests,
        "answered": result.answered,
        "refused": dict(result.refused),
        "failed": dict(result.failed),
        "examples": result.examples,
        "lasted_s": round(result.lasted_s, 1),
        "silence_s": round(result.silence_s, 2),
        "answer_s_p50": _quantile(result.answer_s, 0.5),
        "answer_s_p99": _quantile(result.answer_s, 0.99),
        "campaign_passed": result.passed,
        "poison": poison,
        "not_a_number": not_a_number,
        "died": died,
        "memory_used_mib": memory_used_mib(),
        "passed": result.passed and poison["refused_by_name"] and not_a_number["passed"] and not died,
    }


async def _poison(server: Server) -> dict[str, Any]:
    async with httpx.AsyncClient(trust_env=False, timeout=STREAM_S) as client:
        answer = await client.post(f"{server.url}/v1/chat/completions", json=POISON)
    error = answer.json().get("error") or {}
    is_refused = answer.status_code == httpx.codes.BAD_REQUEST and error.get("param") == "repetition_penalty"
    return {"status": answer.status_code, "error": error, "refused_by_name": is_refused}


async def _not_a_number(it: Profile, server: Server) -> dict[str, Any]:
    """One stream's logits become NaN while another one, greedy, runs beside it."""
    text = text_ids(it.token_models[0])
    greedy, sick, undisturbed = Stream(), Stream(), Stream()
    await follow(server.url, text[:100], it.kill_tokens, undisturbed)
    async with asyncio.timeout(STREAM_S), asyncio.TaskGroup() as group:
        group.create_task(follow(server.url, text[:100], it.kill_tokens, greedy))
        asked = follow(server.url, text[200:260], it.kill_tokens, sick, temperature=NAN_TEMPERATURE)
        task = group.create_task(asked)
        while len(sick.ids) < BEGUN and not task.done():
            await asyncio.sleep(0.005)
        NAN_FILE.write_text(f"{NAN_TEMPERATURE}")
        await task
        NAN_FILE.unlink()
    is_whole = len(greedy.ids) == it.kill_tokens and not greedy.error
    return {
        "sick_tokens": len(sick.ids),
        "sick_error": sick.error,
        "beside_whole": is_whole,
        # On a GPU a batch of another size may round otherwise: told, not asked for.
        "beside_as_undisturbed": greedy.ids == undisturbed.ids,
        "passed": is_whole and "not a number" in sick.error,
    }


def _quantile(values: list[float], part: float) -> float:
    return round(sorted(values)[int(len(values) * part)], 3) if values else 0.0


def _table(row: dict[str, Any]) -> str:
    lines = (f"{name:<18}{value if isinstance(value, str) else json.dumps(value)}" for name, value in row.items())
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
