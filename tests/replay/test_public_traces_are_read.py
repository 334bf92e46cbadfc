"""Traces of each public form; what is wrong with one is told with its file and line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from disagg.replay.traces.read import read_trace
from disagg.replay.traces.trace import NOBODY, TraceError

DATA = Path(__file__).parent / "data"
MOONCAKE = {"timestamp": 27482, "input_length": 600, "output_length": 52, "hash_ids": [46, 47]}
TURNS = [
    {"chat_id": 55, "parent_chat_id": -1, "timestamp": 3.5, "input_length": 40, "output_length": 10, "type": "text",
     "turn": 1, "hash_ids": [1, 2, 3]},
    {"chat_id": 159, "parent_chat_id": 55, "timestamp": 61.114, "input_length": 70, "output_length": 132,
     "type": "text", "turn": 2, "hash_ids": [1, 2, 4, 5, 6]},
    {"chat_id": 160, "parent_chat_id": -1, "timestamp": 61.2, "input_length": 16, "output_length": 1,
     "type": "search", "turn": 1, "hash_ids": [9]},
]  # fmt: skip


def written(folder: Path, *lines: object) -> Path:
    path = folder / "trace.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def test_mooncakes_form() -> None:
    trace = read_trace(DATA / "mooncake-200.jsonl.gz")
    assert (len(trace.requests), trace.block_tokens, trace.is_closed) == (200, 512, False)
    assert trace.stamp_s == pytest.approx(3.0, abs=0.01), "arrivals are told in steps of three seconds"
    first = trace.requests[0]
    assert (first.prompt_tokens, first.output_tokens, len(first.blocks)) == (6758, 500, 14)


def test_azures_form() -> None:
    trace = read_trace(DATA / "azure-200.csv")
    assert (len(trace.requests), trace.block_tokens, trace.stamp_s) == (200, 0, 0.0)
    assert trace.requests[0].at_s == 0.0
    assert trace.requests[1].at_s == pytest.approx(4.314579)
    assert (trace.requests[0].prompt_tokens, trace.requests[0].output_tokens) == (374, 44)


def test_sessions_of_agents_are_a_closed_loop() -> None:
    trace = read_trace(DATA / "agentic-200.jsonl.gz")
    assert (len(trace.requests), trace.block_tokens, trace.is_closed) == (207, 64, True)
    first, second = trace.requests[:2]
    assert (first.after, second.after, second.at_s) == (NOBODY, first.number, 12.0)
    assert second.blocks[:1112] == first.blocks[:1112], "its first 1112 blocks are those of the one before"
    nested = [request for request in trace.requests if "/" in request.session]
    assert nested, "sub-agents are sessions of their own"
    assert nested[0].after < nested[0].number
    assert len({request.blocks[0] for request in trace.requests if request.after == NOBODY}) == 8, "nothing is shared"


def test_turns_of_a_chat_of_bailian_are_one_session(tmp_path: Path) -> None:
    trace = read_trace(written(tmp_path, *TURNS))
    assert (trace.block_tokens, [request.session for request in trace.requests]) == (16, ["55", "55", "160"])
    assert trace.requests[1].at_s == 61.114


def test_a_gzipped_trace_reads_as_the_plain_one(tmp_path: Path) -> None:
    plain = written(tmp_path, *TURNS)
    zipped = tmp_path / "trace.gz"
    zipped.write_bytes(gzip.compress(plain.read_bytes()))
    assert read_trace(zipped).requests == read_trace(plain).requests


def test_requests_without_an_answer_are_left_out(tmp_path: Path) -> None:
    assert len(read_trace(written(tmp_path, MOONCAKE, {**MOONCAKE, "output_length": 0})).requests) == 1


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2: is no JSON"),
        ("[]", "line 2: is no JSON object"),
        ({"timestamp": 1}, "line 2: has no input_length; it has timestamp"),
        ({**MOONCAKE, "timestamp": "now"}, "line 2: timestamp must be a number from 0, is 'now'"),
        ({**MOONCAKE, "input_length": -1}, "line 2: input_length must be a count of tokens, is -1"),
        ({**MOONCAKE, "output_length": True}, "line 2: output_length must be a count of tokens, is True"),
        ({**MOONCAKE, "hash_ids": [1]}, "line 2: has 1 hash_ids for a prompt of 600 tokens; blocks have 512 tokens"),
        ({**MOONCAKE, "hash_ids": ["a", "b"]}, "line 2: hash_ids must be a list of whole numbers"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: object, said: str) -> None:
    path = written(tmp_path, MOONCAKE, line)
    with pytest.raises(TraceError) as raised:
        read_trace(path)
    assert f"{path}, {said}" in str(raised.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ('{"prompt": "hello"}', "line 1: is of no known form; its fields are prompt"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.68,12", "line 2: has 2 cells"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\nyesterday,1,2", "line 2: TIMESTAMP is 'yesterday'"),
        ('{"id": "a", "block_size": 64, "requests": [{"t": 0, "in": 64, "out": 1, "lcp": 3, "new": []}]}',
         "line 1: request 0: lcp is 3, and the one before has 0 blocks"),
        ('{"id": "a", "block_size": 64, "requests": [{"t": 0, "in": 64, "out": 1, "lcp": 0, "new": [1]}]}',
         "line 1: request 0: new has 1; say [first, last]"),
        (json.dumps({**MOONCAKE, "output_length": 0}), "has no request with a prompt and an answer"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_trace_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(TraceError) as raised:
        read_trace(path)
    assert said in str(raised.value)


def test_a_file_that_is_cut_off_or_not_there_is_refused(tmp_path: Path) -> None:
    cut = tmp_path / "cut.gz"
    cut.write_bytes((DATA / "mooncake-200.jsonl.gz").read_bytes()[:2000])
    with pytest.raises(TraceError, match="cannot be read"):
        read_trace(cut)
    with pytest.raises(TraceError, match="after line 0: cannot be read"):
        read_trace(tmp_path / "nowhere")
