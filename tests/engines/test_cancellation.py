"""A client leaves, or cancels: both engines let go of its KV, whatever they were doing."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from deployment import Deployment, serving
from streams import Stream, kv_tokens_used, wait_until

from disagg.sglang.heartbeat import Beat, read_beats

pytestmark = pytest.mark.alone

FREE_S = 60.0  # after the end of the chunk or step that ran when the client left; under 1 s on an idle machine
CHUNK_TOKENS = 256  # in configs/local-cpu.yaml
STEP_S = 10.0  # more than any of them takes, on whatever machine


@pytest.fixture(scope="module")
def slow_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("slow") / "seconds"


@pytest.fixture(scope="module")
def pair(slow_file: Path) -> Iterator[Deployment]:
    faults = {"DISAGG_TEST_SLOW_TRANSFER": str(slow_file)}
    with serving("configs/local-cpu.yaml", "ray.address=local", environment=faults) as deployment:
        yield deployment


def _fresh_prompt(tokens: int) -> list[int]:
    """No prefix of it is in any cache."""
    return [int(time.time() * 1000) % 30_000 + 1000, *range(1000, 999 + tokens)]


def _phase(deployment: Deployment, stream: Stream) -> str:
    for request in deployment.get("/disagg/status")["frontend"]["live"]:
        if not stream.request_id or request["id"] == stream.request_id:
            return str(request["phase"])
    return ""


def _beat(deployment: Deployment, engine_id: str) -> Callable[[], Beat]:
    """Reads the newest beat of an engine's scheduler."""
    engine = deployment.engine(engine_id)
    (pid,) = engine["pids"]["schedulers"]
    folders = Path(tempfile.gettempdir()).glob(f"disagg-*/{engine_id}-{engine['incarnation']}")
    (folder,) = (folder for folder in folders if any(beat.pid == pid for beat in read_beats(folder)))
    return lambda: next(beat for beat in read_beats(folder) if beat.pid == pid)


def _assert_free(deployment: Deployment, before: dict[str, int], since_s: float, busy: str, other: str = "") -> None:
    """Both engines are as before soon after the end of the step that the busy one was in at `since_s`, when the request
    was ended; of those that held KV of it then, by snapshots that SGLang has made since.
    """
    beat, since_wall_s = _beat(deployment, busy), time.time() - (time.monotonic() - since_s)
    while (step_end_s := beat().at_s) < since_s:
        assert time.monotonic() - since_s < STEP_S, "the step does not end"
        time.sleep(0.002)

    def is_free() -> bool:
        ranks = [(life, rank) for life, ranks in deployment.get("/disagg/loads").items() for rank in ranks]
        held = [rank for life, rank in ranks if life.partition("#")[0] in (busy, other)]
        are_new = all(rank["reported_at_s"] > since_wall_s for rank in held)
        return are_new and all(rank["kv_tokens_used"] == before[life] for life, rank in ranks)

    limit_s = FREE_S - (time.monotonic() - step_end_s)
    wait_until(is_free, limit_s, lambda: (before, since_wall_s, deployment.get("/disagg/loads")))
    print(f"the step ended after {step_end_s - since_s:.3f} s, free {time.monotonic() - step_end_s:.3f} s later")
    wait_until(lambda: deployment.get("/disagg/status")["frontend"]["rooms"] == 0, FREE_S)


def _assert_serves_on(deployment: Deployment) -> None:
    for number in range(20):
        deployment.complete([2000 + number, 5, 6, 7], max_tokens=1)


def test_during_a_long_prefill_it_costs_a_part_of_the_whole(pair: Deployment) -> None:
    (scheduler,) = pair.engine("prefill-0")["pids"]["schedulers"]

    def cpu_s() -> float:
        times = psutil.Process(scheduler).cpu_times()
        return float(times.user + times.system)

    before = cpu_s()
    pair.complete(_fresh_prompt(3000), max_tokens=1)
    whole_s = cpu_s() - before
    free = kv_tokens_used(pair)
    before = cpu_s()
    stream = Stream(pair, _fresh_prompt(3000), 8)
    wait_until(lambda: _phase(pair, stream) == "prefilling", 10, pair.said)
    left_at_s = time.monotonic()
    stream.leave()
    _assert_free(pair, free, left_at_s, "prefill-0", "decode-0")
    time.sleep(2)
    assert cpu_s() - before < 0.2 * whole_s
    _assert_serves_on(pair)


def test_during_a_long_prefill_when_some_of_its_kv_is_there(pair: Deployment) -> None:
    free = kv_tokens_used(pair)
    (prefill,) = (life for life in free if life.startswith("prefill"))
    stream = Stream(pair, _fresh_prompt(3000), 8)
    wait_until(lambda: kv_tokens_used(pair)[prefill] >= free[prefill] + 2 * CHUNK_TOKENS, 30, pair.said)
    left_at_s = time.monotonic()
    stream.leave()
    _assert_free(pair, free, left_at_s, "prefill-0", "decode-0")
    _assert_serves_on(pair)


def test_during_a_transfer(pair: Deployment, slow_file: Path) -> None:
    free = kv_tokens_used(pair)
    slow_file.write_text("4")
    try:
        stream = Stream(pair, _fresh_prompt(300), 8)
        wait_until(lambda: _phase(pair, stream) == "transferring", 20, pair.said)
        stream.leave()
        time.sleep(0.2)
        assert pair.get("/disagg/status")["frontend"]["requests"] == 0
    finally:
        slow_file.unlink()
    # NIXL's transfer itself cannot be called back: the pages are kept until it has ended.
    wait_until(lambda: kv_tokens_used(pair) == free, 4 + FREE_S, lambda: kv_tokens_used(pair))
    _assert_serves_on(pair)


def test_while_it_decodes(pair: Deployment) -> None:
    free = kv_tokens_used(pair)
    stream = Stream(pair, _fresh_prompt(40), 2000)
    wait_until(lambda: len(stream.events) >= 3, 20)
    left_at_s = time.monotonic()
    stream.leave()
    _assert_free(pair, free, left_at_s, "decode-0")
    _assert_serves_on(pair)


@pytest.mark.parametrize("how", ["DELETE", "disagg cancel"])
def test_cancelled_by_its_id(pair: Deployment, how: str) -> None:
    free = kv_tokens_used(pair)
    stream = Stream(pair, _fresh_prompt(40), 2000)
    wait_until(lambda: len(stream.events) >= 2, 20)

    if how == "DELETE":
        url = f"{pair.url}/v1/requests/{stream.request_id}"
        assert httpx.delete(url, timeout=10, trust_env=False).json()["cancelled"]
    else:
        command = [sys.executable, "-m", "disagg.cli.main", "cancel", stream.request_id, "--url", pair.url]
        subprocess.run(command, check=True, timeout=60)
    stream.join(5)
    assert stream.error
    assert stream.error["code"] == "cancelled"
    _assert_free(pair, free, stream.events[-1][0], "decode-0")
    assert pair.timeline(stream.request_id, until="error")["phase"] == "cancelled"
