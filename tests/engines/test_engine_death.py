"""An engine is SIGKILLed under a request: the client hears of it at once, the engine comes back, nothing is left."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator

import psutil
import pytest
from deployment import Deployment, Traces, serving
from streams import Stream, wait_until

pytestmark = pytest.mark.alone

TOLD_S = 20.0  # on a busy machine; well under a second on an idle one
BACK_S = 120.0  # on a busy machine
ROUNDS = 3
GROWTH_MIB = 25.0
CLOSING_MAX = 24


@pytest.fixture(scope="module")
def pair() -> Iterator[Deployment]:
    once = ("routing.retry_limit=0", "routing.migration_limit=0")  # what a lost leg means, without another try
    with serving("configs/local-cpu.yaml", "ray.address=local", *once) as deployment:
        yield deployment


def _kill(deployment: Deployment, engine_id: str, whom: str) -> float:
    pid = deployment.engine(engine_id)["pids"][whom]
    os.kill(pid[0] if isinstance(pid, list) else pid, signal.SIGKILL)
    return time.monotonic()


def _assert_told(stream: Stream, killed_at: float) -> None:
    stream.join(TOLD_S + 3)
    assert not stream.is_alive(), "the stream hangs"
    assert stream.error, f"no error event: {stream.status} {stream.failure} {stream.events[-2:]}"
    assert stream.error["code"] == "leg_lost"
    assert stream.events[-1][0] - killed_at < TOLD_S


def _assert_back(deployment: Deployment, engine_id: str, incarnation: int) -> None:
    def is_back() -> bool:
        engine = deployment.engine(engine_id)
        return bool(engine["incarnation"] > incarnation and engine["state"] == "ready") and deployment.is_ready()

    deployment.wait_until(is_back, BACK_S)
    answer = deployment.complete("The capital of France is", max_tokens=4)
    assert "Paris" in answer["choices"][0]["text"]
    assert deployment.timeline(answer["request_id"])["kv_bytes"] > 0


@pytest.mark.in_turn(2)
@pytest.mark.parametrize("whom", ["host", "schedulers", "actor"])
def test_decode_killed_mid_stream(pair: Deployment, whom: str) -> None:
    before = pair.engine("decode-0")
    stream = Stream(pair, [*range(1000, 1040)], 400)
    pair.wait_until(lambda: len(stream.events) >= 5, 30)
    _assert_told(stream, _kill(pair, "decode-0", whom))
    _assert_back(pair, "decode-0", before["incarnation"])
    assert pair.engine("decode-0")["bootstrap"] == ""


@pytest.mark.in_turn(1)
@pytest.mark.parametrize("whom", ["host", "schedulers"])
def test_prefill_killed_during_a_long_prefill(pair: Deployment, whom: str) -> None:
    """Its scheduler is stopped, so that it does not come to the prompt's end first, however quick the machine is."""
    before = pair.engine("prefill-0")
    os.kill(before["pids"]["schedulers"][0], signal.SIGSTOP)
    stream = Stream(pair, [int(time.time()) % 999 + 1, *range(1000, 4000)], 8)
    pair.wait_until(lambda: pair.engine("prefill-0")["in_flight"] == 1, 30)
    _assert_told(stream, _kill(pair, "prefill-0", whom))
    _assert_back(pair, "prefill-0", before["incarnation"])
    assert pair.engine("prefill-0")["bootstrap"] != before["bootstrap"], "a bootstrap address was used again"


def test_rounds_leave_nothing(pair: Deployment) -> None:
    frontend = pair.get("/disagg/status")["frontend"]["pid"]

    def held() -> dict[str, int]:
        traces = Traces.now()
        return {
            "processes": len(psutil.Process(pair.process.pid).children(recursive=True)) + len(traces.processes),
            "ports": len(traces.ports),
            "sockets of the driver": _sockets(pair.process.pid),
            "sockets of the frontend": _sockets(frontend),
        }

    def memory_mib() -> float:
        """Of what outlives engines: driver and frontend."""
        return float(sum(psutil.Process(pid).memory_info().rss for pid in (frontend, pair.process.pid)) / 2**20)

    _one_round(pair, "decode-0")
    _one_round(pair, "prefill-0")
    before, before_mib = held(), memory_mib()
    for number in range(ROUNDS):
        _one_round(pair, ("decode-0", "prefill-0")[number % 2])
    _until_no_more(held, before)
    said = pair.get("/disagg/status")["frontend"]
    kept = {name: said[name] for name in ("requests", "queued", "attempts", "rooms", "places")}
    assert not any(kept.values()), kept
    assert memory_mib() - before_mib < GROWTH_MIB


def test_a_survivor_holds_no_more_connections_than_before(pair: Deployment) -> None:
    """UCX closes those to a dead peer late: eight a death, of three deaths at most (6 rounds were seen)."""
    pids = _pids(pair, "prefill-0")
    before = {"open": _open_sockets(*pids)}
    closing = _sockets(*pids) - before["open"]
    _one_round(pair, "decode-0")
    _until_no_more(lambda: {"open": _open_sockets(*pids)}, before)
    assert _sockets(*pids) - before["open"] <= closing + CLOSING_MAX


def _one_round(pair: Deployment, victim: str) -> None:
    before = pair.engine(victim)
    stream = Stream(pair, [*range(1000, 1040)], 200)
    pair.wait_until(lambda: len(stream.events) >= 2, 30)
    _assert_told_or_done(stream, _kill(pair, victim, "host"))
    _assert_back(pair, victim, before["incarnation"])


def _until_no_more(held: Callable[[], dict[str, int]], before: dict[str, int]) -> None:
    wait_until(lambda: all(count <= before[name] for name, count in held().items()), 60, lambda: (before, held()))


def _sockets(*pids: int) -> int:
    """TCP connections that these processes hold, also those whose other end is gone."""
    connections = [each for pid in pids for each in psutil.Process(pid).net_connections("tcp")]
    return sum(each.status != psutil.CONN_LISTEN for each in connections)


def _open_sockets(*pids: int) -> int:
    connections = [each for pid in pids for each in psutil.Process(pid).net_connections("tcp")]
    return sum(each.status == psutil.CONN_ESTABLISHED for each in connections)


def _pids(pair: Deployment, engine_id: str) -> list[int]:
    """Of an engine's host and its children."""
    host = psutil.Process(pair.engine(engine_id)["pids"]["host"])
    return [host.pid, *(child.pid for child in host.children(recursive=True))]


def _assert_told_or_done(stream: Stream, killed_at: float) -> None:
    """A prefill engine's death does not end a stream that decodes already."""
    if stream.error is None and stream.is_alive():
        stream.join(240)
    if stream.error is not None:
        _assert_told(stream, killed_at)
    assert not stream.is_alive()
