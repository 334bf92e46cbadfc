"""The arithmetic of `python -m benchmarks.peers`, and what its fake worker understands. No peer is started."""

from __future__ import annotations

import argparse
import asyncio
from array import array
from pathlib import Path

import pytest

from benchmarks.load import Answer, drive
from benchmarks.peers.__main__ import _names
from benchmarks.peers.deployments import OURS, chat
from benchmarks.peers.fake_worker import Steps, Worker, take_request
from benchmarks.peers.install import requirements, version
from benchmarks.peers.measure import Failed, window
from benchmarks.peers.rounds import Results
from benchmarks.peers.table import METRICS, cell, table
from benchmarks.prompts import Prompts

HEAD = b"POST / HTTP/1.1\r\nHost: x\r\n"


def test_a_request_is_taken_once_it_is_whole_however_it_is_framed() -> None:
    counted = HEAD + b"content-Length: 4\r\n\r\nbody"
    chunked = HEAD + b"Transfer-Encoding: chunked\r\n\r\n3\r\nbod\r\n1\r\ny\r\n0\r\n\r\n"
    for request in (counted, chunked):
        assert all(take_request(request[:size]) is None for size in range(len(request)))
        assert take_request(request + b"GET") == (b"body", len(request))
    assert take_request(b"GET /health HTTP/1.1\r\n\r\n") == (b"", 24)


@pytest.mark.parametrize(("is_prefill", "tokens"), [(False, 5), (True, 1)])
async def test_the_fake_worker_streams_as_many_tokens_as_asked_and_a_prefill_worker_one(
    is_prefill: bool, tokens: int
) -> None:
    steps = Steps(0.0)
    server = await asyncio.get_running_loop().create_server(lambda: Worker(is_prefill, steps), "127.0.0.1", 0)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        answers = await drive(url, [chat(url, "m", "hello", 5)] * 3, 2, keep=True)
    assert [(a.error, a.completion_tokens, a.body.count(b'"content":" token"')) for a in answers] == [
        ("", tokens, tokens)
    ] * 3


def _answer(first_s: float, *came: tuple[float, int]) -> Answer:
    times, counts = array("d", [at_s for at_s, _ in came]), array("I", [count for _, count in came])
    return Answer(0.0, first_s=first_s, ended_s=came[-1][0], came_s=times, events=counts)


def test_a_window_is_where_every_stream_runs_and_only_its_tokens_count() -> None:
    answers = [_answer(1.0, (1.0, 1), (2.0, 1), (3.0, 2), (9.0, 1)), _answer(1.5, (1.5, 1), (2.5, 1), (4.0, 1))]
    samples = [(at_s, at_s * 10) for at_s in (0.5, 1.4, 1.6, 2.6, 3.5, 3.99, 8.0)]
    assert window(samples, answers) == ((1.6, 16.0), (3.5, 35.0))
    assert sum(answer.events_between(1.6, 3.5) for answer in answers) == 4
    with pytest.raises(Failed, match="longer ones are needed"):
        window(samples[:3], answers)


def test_a_summary_has_medians_of_rounds_and_percentiles_of_single_requests() -> None:
    results = Results()
    for value in (3.0, 1.0, 200.0):
        results.put("smg", "req_s_64", value)
    for value in range(101):
        results.put("smg", "ttft_1", float(value))
    assert results.summary("smg") == {"req_s_64": 3.0, "ttft_1_p50": 50.0, "ttft_1_p99": 99.0}


def test_a_cell_tells_the_ratio_to_ours_a_missed_pace_and_what_is_missing() -> None:
    ours = {"token_us_64": 20.0}
    assert cell("token_us_64", {"token_us_64": 50.0, "pace_64": 0.5}, ours) == "50 ~50% (2.50x)"
    assert cell("token_us_64", ours, None) == "20"
    assert cell("req_s_64", {"req_s_64": 1234.5}, {}) == "1,234"
    assert cell("req_s_64", {}, ours) == "-"


def test_a_peer_that_could_not_be_installed_is_a_line_of_the_table() -> None:
    told = table([OURS, "smg"], {OURS: {"ready_s": 1.0}, "smg": {}}, {"smg": ["not measured: no network"]})
    assert len(told.splitlines()) > len(METRICS)
    assert told.splitlines()[-1] == "smg: does not tokenise; before HTTP workers; not measured: no network"


def test_only_known_names_are_taken() -> None:
    assert _names("ours,smg") == ["ours", "smg"]
    with pytest.raises(argparse.ArgumentTypeError, match="'vllm' is none of ours, "):
        _names("ours,vllm")


@pytest.mark.parametrize("name", ["sglang-router", "smg", "dynamo"])
def test_all_that_is_installed_is_pinned(name: str) -> None:
    assert all("==" in line for line in requirements(name))
    assert version(name)[0].isdigit()


def test_prompts_have_as_many_words_as_tokens_and_no_two_are_alike(tmp_path: Path) -> None:
    words = ",".join(f'"Ġ{a}{b}": {ord(a) * 26 + ord(b)}' for a in "abcdefghij" for b in "klmnopqrst")
    (tmp_path / "tokenizer.json").write_text(f'{{"model": {{"vocab": {{{words}, "the": 0, "Ġ9": 1}}}}}}')
    texts = Prompts(tmp_path, seed=1).texts(50, 20)
    assert len(set(texts)) == 50
    assert {len(text.split()) for text in texts} == {20}
    assert "the" not in " ".join(texts).split()
