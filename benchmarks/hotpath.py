"""What a streamed token and a request cost in the frontend and in the host of an engine, in CPU time.

Way:   `python -m benchmarks.hotpath [--quick] [--policies NAME,NAME]` -> load -> stub deployment -> table, JSON
Out:   a token's cost is what the process burns while all streams run, over the tokens that came meanwhile: no request
       begins or ends in that time. A request's cost is that of answers of one token, its prompt tokenised
Fails: a pace that was not kept is told in the table: the cost there is that of merged tokens
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import uvloop

from benchmarks.load import Answer, chat, drive
from benchmarks.processes import cpu_s, pss_mb
from benchmarks.prompts import Prompts
from benchmarks.stub_deployment import StubDeployment, stub_deployment
from disagg.models.resolve import resolve_model
from disagg.policy_names import DEFAULT

WINDOW_S = 4.0
PACES = {1: 2.0, 64: 10.0, 512: 50.0, 2048: 200.0}  # streams -> ms between tokens: some 10,000 tokens a second
ENGINES = 2  # of each role, for requests: a policy has something to choose
PROMPTS = {16: 400, 500: 200, 8000: 40}  # tokens -> requests


@dataclass(frozen=True, slots=True)
class TokenCost:
    streams: int
    pace_ms: float
    reached: float  # tokens that came over those that the pace wants
    frontend_us: float
    host_us: float


@dataclass(frozen=True, slots=True)
class RequestCost:
    prompt_tokens: int
    frontend_us: float
    host_us: float


async def token_cost(model: Path, streams: int, pace_ms: float, window_s: float = WINDOW_S) -> TokenCost:
    async with stub_deployment(model, pace_ms) as deployment:
        tokens = int((window_s + 4 + streams / 200) * 1e3 / pace_ms)
        (text,) = Prompts(model, streams).texts(1, 46)
        request = chat(deployment.url, "stub", text, tokens)
        answers: list[Answer] = []
        loading = asyncio.create_task(drive(deployment.url, [request] * streams, streams, sink=answers))
        while len(answers) < streams or not all(answer.first_s for answer in answers):
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.5)
        before, began_s = _cpu(deployment), time.perf_counter()
        await asyncio.sleep(window_s)
        after, over_s = _cpu(deployment), time.perf_counter()
        loading.cancel()
        await asyncio.wait([loading])
        assert not any(answer.error or answer.ended_s for answer in answers), "a stream ended within the window"
        came = sum(answer.events_between(began_s, over_s) for answer in answers)
        due = streams * (over_s - began_s) * 1e3 / pace_ms
        frontend, host = ((b - a) * 1e6 / came for a, b in zip(before, after, strict=True))
        return TokenCost(streams, pace_ms, came / due, frontend, host)


async def request_costs(model: Path, prompts: dict[int, int], policy: str = DEFAULT) -> list[RequestCost]:
    costs, texts = [], Prompts(model, seed=0)
    async with stub_deployment(model, engines_a_role=ENGINES, policy=policy) as deployment:
        for tokens, count in prompts.items():
            await _requests(deployment, texts, tokens, 8)
            before = _cpu(deployment)
            await _requests(deployment, texts, tokens, count)
            frontend, host = ((b - a) * 1e6 / count for a, b in zip(before, _cpu(deployment), strict=True))
            costs.append(RequestCost(tokens, frontend, host))
    return costs


async def max_speed(model: Path, streams: int, tokens: int) -> tuple[float, float]:
    """(tokens a second, MB of the frontend afterwards): frontend, engines and driver share this machine."""
    async with stub_deployment(model) as deployment:
        (text,) = Prompts(model, streams).texts(1, 46)
        request = chat(deployment.url, "stub", text, tokens)
        began_s = time.perf_counter()
        answers = await drive(deployment.url, [request] * streams, streams)
        _all_well(answers)
        rate = sum(answer.completion_tokens for answer in answers) / (time.perf_counter() - began_s)
        return rate, pss_mb([deployment.pids["frontend"]])


async def _requests(deployment: StubDeployment, prompts: Prompts, tokens: int, count: int) -> None:
    wanted = [chat(deployment.url, "stub", text, 1) for text in prompts.texts(count, tokens)]
    _all_well(await drive(deployment.url, wanted, 4))


def _all_well(answers: Iterable[Answer]) -> None:
    errors = [answer.error for answer in answers if answer.error]
    assert not errors, errors[0]


def _cpu(deployment: StubDeployment) -> tuple[float, float]:
    pids = deployment.pids
    return cpu_s([pids["frontend"]]), cpu_s([pids["decode"]])


async def compare_policies(names: list[str], rounds: int = 5) -> None:
    """Of requests, in turns; medians."""
    model, costs = Path(resolve_model("smollm2")), dict[tuple[str, int], list[float]]()
    for number in range(rounds):
        for name in names if number % 2 else reversed(names):
            for cost in await request_costs(model, PROMPTS, name):
                costs.setdefault((name, cost.prompt_tokens), []).append(cost.frontend_us)
    for (name, tokens), each in sorted(costs.items(), key=lambda row: row[0][1]):
        print(f"{tokens:>6} prompt tokens, {name}: frontend {median(each):.0f} µs ({min(each):.0f} to {max(each):.0f})")


async def measure(quick: bool) -> dict[str, object]:
    model, rounds = Path(resolve_model("smollm2")), 1 if quick else 3
    paces = {streams: PACES[streams] for streams in (64, 512)} if quick else PACES
    rows: list[TokenCost] = []
    for streams, pace_ms in paces.items():
        costs = [await token_cost(model, streams, pace_ms) for _ in range(rounds)]
        rows.append(sorted(costs, key=lambda cost: cost.frontend_us)[rounds // 2])
        print(_token_row(rows[-1]), flush=True)
    per_request = [await request_costs(model, PROMPTS) for _ in range(rounds)]
    requests = [
        RequestCost(same[0].prompt_tokens, median(c.frontend_us for c in same), median(c.host_us for c in same))
        for same in zip(*per_request, strict=True)
    ]
    for cost in requests:
        print(
            f"{cost.prompt_tokens:>6} prompt tokens: frontend {cost.frontend_us:8.0f} µs, host {cost.host_us:6.0f} µs"
        )
    speeds = {}
    for streams, tokens in ((64, 2000), (512, 400)):
        runs = [await max_speed(model, streams, tokens) for _ in range(rounds)]
        speeds[streams] = median(rate for rate, _ in runs)
        print(
            f"{streams:>6} streams at full speed: {speeds[streams] / 1e3:.0f} k tokens/s, frontend {runs[-1][1]:.0f} MB"
        )
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {platform.python_version()}",
        "token": [asdict(row) for row in rows],
        "request": [asdict(cost) for cost in requests],
        "full_speed_tokens_s": speeds,
    }


def _token_row(cost: TokenCost) -> str:
    kept = "" if cost.reached > 0.97 else f"  PACE NOT KEPT: {cost.reached:.0%}"
    each = f"frontend {cost.frontend_us:6.1f} µs, host {cost.host_us:5.1f} µs a token"
    return f"{cost.streams:>6} streams, a token each {cost.pace_ms:g} ms: {each}{kept}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round, 64 and 512 streams")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--policies", help="compare what requests cost with these, and nothing else")
    arguments = parser.parse_args()
    if arguments.policies:
        uvloop.run(compare_policies(arguments.policies.split(",")))
        return
    figures = uvloop.run(measure(arguments.quick))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
