"""Two engines a role: one of them dies or hangs under eight streams, and no client sees more than a pause. Under
samples, logprobs, a schema and a required call, too: but a stream that a grammar leads is told that it cannot go on.

Every disturbed run is compared with an undisturbed one of the same prompts: the same token ids, and the same text.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from deployment import Deployment, serving
from feature_clients import TEMPLATE, assert_survived, open_all
from page_in_sight import in_sight
from streams import Stream, wait_until

from tests.robustness.strictly import Said

STREAMS, TOKENS = 8, 48
Answer = tuple[list[int], str]  # token ids, text
FOUND_S = 30.0  # on a busy machine; some 3 s on an idle one
BACK_S = 120.0
WHOLE_S = 150.0


@pytest.fixture(scope="module")
def hang_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hang") / "seconds"


@pytest.fixture(scope="module")
def four(hang_file: Path) -> Iterator[Deployment]:
    faults = {"DISAGG_TEST_HANG": str(hang_file)}
    template = hang_file.with_name("template.jinja")
    template.write_text(TEMPLATE)
    sets = ("ray.address=local", "deadlines.no_pair_s=60", "deadlines.queue_s=120", f"model.chat_template={template}")
    with serving("configs/local-cpu-2p2d.yaml", *sets, environment=faults) as deployment:
        yield deployment


def _open(deployment: Deployment, tokens: int = TOKENS) -> list[Stream]:
    return [Stream(deployment, [1000 + 7 * number, *range(2000, 2040)], tokens) for number in range(STREAMS)]


@pytest.fixture(scope="module")
def undisturbed(four: Deployment) -> list[Answer]:
    return [stream.whole(WHOLE_S) for stream in _open(four)]


@pytest.fixture(scope="module")
def features(four: Deployment) -> dict[str, Said]:
    return {client.name: client.said(WHOLE_S) for client in open_all(four) if not client.is_stream}


def _busiest(deployment: Deployment, role: str) -> dict[str, object]:
    engines = [e for e in deployment.get("/disagg/status")["engines"] if e["role"] == role]
    return max(engines, key=lambda e: e["in_flight"])


def _live(deployment: Deployment) -> int:
    return int(deployment.get("/disagg/status")["frontend"]["requests"])


def _assert_same(deployment: Deployment, streams: list[Stream], want: list[Answer], record: object) -> None:
    assert [stream.whole(WHOLE_S) for stream in streams] == want
    ways = [deployment.timeline(stream.request_id, until="usage") for stream in streams]
    moved = [way for way in ways if way.get("lost_tries")]
    assert moved, "nothing was lost: the fault came too late"
    pauses = [pause for way in moved for pause in way.get("pauses_ms", ())]
    record("pauses_ms", pauses)  # type: ignore[operator]
    print(f"{len(moved)} of {STREAMS} lost a try; pauses {pauses} ms")


def _until_back(deployment: Deployment, engine_id: str, incarnation: object) -> None:
    def is_back() -> bool:
        engine = deployment.engine(engine_id)
        return bool(engine["incarnation"] > incarnation and engine["state"] == "ready")

    wait_until(is_back, BACK_S, deployment.said)


def test_a_decode_scheduler_is_killed(
    four: Deployment, undisturbed: list[Answer], features: dict[str, Said], record_property: object, tmp_path: Path
) -> None:
    """And the page tells of it."""
    with in_sight(f"{four.url}/disagg/", tmp_path) as page:
        page("document.querySelectorAll('[data-engine]').length === 4", WHOLE_S)
        clients = open_all(four)
        wait_until(lambda: all(client.has_begun() for client in clients), WHOLE_S, lambda: clients)
        streams = _open(four)
        wait_until(lambda: all(len(stream.events) >= 3 for stream in streams), WHOLE_S)
        victim = _busiest(four, "decode")
        os.kill(victim["pids"]["schedulers"][0], signal.SIGKILL)  # type: ignore[index]
        died_s = page(f"story.querySelector('[data-kind=dead]')?.textContent.includes('{victim['id']}')", FOUND_S)
        moved_s = died_s + page("story.querySelector('[data-kind=moved]')?.textContent.includes('stream')", FOUND_S)
        _assert_same(four, streams, undisturbed, record_property)
        cut = assert_survived(clients, features, WHOLE_S)
        moved = [each.name for each in clients if four.timeline(each.request_id, until="usage").get("lost_tries")]
        print(f"streams told that they cannot go on: {cut}; answers that lost a try: {moved}")
        _until_back(four, str(victim["id"]), victim["incarnation"])
        back_s = page(f"document.querySelector('[data-engine={victim['id']}]').dataset.state === 'ready'", FOUND_S)
        print(f"the page: of the death after {died_s:.1f} s, of streams {moved_s:.1f} s, of the return {back_s:.1f} s")


@pytest.mark.in_turn(2, of="the other faults")
def test_a_prefill_scheduler_is_killed_during_a_long_prefill(four: Deployment, features: dict[str, Said]) -> None:
    """However quick the machine: none of them reads on while the victim is looked for."""
    prompt = [int(time.time()) % 999 + 1001, *range(1000, 2500)]  # a prefix that nobody has cached
    schedulers = [e["pids"]["schedulers"][0] for e in four.get("/disagg/status")["engines"] if e["role"] == "prefill"]
    for scheduler in schedulers:
        os.kill(scheduler, signal.SIGSTOP)
    try:
        long, clients = Stream(four, prompt, 8), open_all(four)
        samples = 1 + sum(client.samples for client in clients)
        wait_until(lambda: _live(four) == samples and _busiest(four, "prefill")["in_flight"], WHOLE_S)
        victim = _busiest(four, "prefill")
        os.kill(victim["pids"]["schedulers"][0], signal.SIGKILL)  # type: ignore[index]
    finally:
        for scheduler in schedulers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(scheduler, signal.SIGCONT)
    answer = long.whole(WHOLE_S)
    assert assert_survived(clients, features, WHOLE_S) == [], "nothing had been told: all begin anew"
    ways = [four.timeline(each.request_id, until="usage") for each in (long, *clients)]
    lost = [each for way in ways for each in way.get("lost_tries", ())]
    assert lost
    assert all(each["after_tokens"] == 0 for each in lost)
    assert Stream(four, prompt, 8).whole(WHOLE_S) == answer
    _until_back(four, str(victim["id"]), victim["incarnation"])


def _assert_found(deployment: Deployment, victim: dict[str, object], since: float) -> None:
    """The engine is not READY any more, or another incarnation already."""

    def is_found() -> bool:
        engine = deployment.engine(str(victim["id"]))
        return engine["state"] != "ready" or engine["incarnation"] != victim["incarnation"]

    wait_until(is_found, FOUND_S - (time.monotonic() - since), deployment.said)


@pytest.mark.in_turn(2, of="the other faults")
def test_a_decode_scheduler_is_stopped(four: Deployment, undisturbed: list[Answer], record_property: object) -> None:
    streams = _open(four)
    wait_until(lambda: all(len(stream.events) >= 3 for stream in streams), 60)
    victim = _busiest(four, "decode")
    (scheduler,) = victim["pids"]["schedulers"]  # type: ignore[index]
    os.kill(scheduler, signal.SIGSTOP)
    _assert_found(four, victim, time.monotonic())
    _assert_same(four, streams, undisturbed, record_property)
    _until_back(four, str(victim["id"]), victim["incarnation"])


@pytest.mark.in_turn(2, of="the other faults")
def test_a_decode_scheduler_sleeps(
    four: Deployment, undisturbed: list[Answer], hang_file: Path, record_property: object
) -> None:
    streams = _open(four)
    wait_until(lambda: all(len(stream.events) >= 3 for stream in streams), 60)
    victim = _busiest(four, "decode")
    hang_file.write_text(f"60 {victim['id']}")
    wait_until(lambda: not hang_file.exists(), 30)  # the scheduler that takes it removes it
    _assert_found(four, victim, time.monotonic())
    _assert_same(four, streams, undisturbed, record_property)
    _until_back(four, str(victim["id"]), victim["incarnation"])


@pytest.mark.in_turn(2, of="the other faults")
def test_a_prefill_scheduler_is_stopped_behind_a_bootstrap_server_that_answers(
    four: Deployment, undisturbed: list[Answer]
) -> None:
    """The bootstrap server runs in the host, and says OK over a scheduler that does nothing."""
    victim = _busiest(four, "prefill")
    (scheduler,) = victim["pids"]["schedulers"]  # type: ignore[index]
    os.kill(scheduler, signal.SIGSTOP)
    since = time.monotonic()
    streams = _open(four)
    _assert_found(four, victim, since)
    assert [stream.whole(WHOLE_S) for stream in streams] == undisturbed
    _until_back(four, str(victim["id"]), victim["incarnation"])
