"""A stream of twice the length costs twice as much, also where each event holds all that came so far."""

from __future__ import annotations

import json

import pytest

from disagg.frontend.logprobs import TokenText
from disagg.frontend.native_api import NativeSaying, NativeStream
from disagg.frontend.native_api.form import EACH_BYTES
from disagg.frontend.parts import ChoiceAnswer, Content, TokenLogprobs
from disagg.frontend.responses_api import ResponseHead, ResponsesStream
from tests.frontend.answers import USAGE

TOP = [(5, -1.0), (6, -2.0)]


def native(count: int, top: list[tuple[int, float]] | None) -> tuple[int, int, bytes]:
    """(events, their bytes, the last one but for the end)"""
    stream = NativeStream(NativeSaying(["a"], [[1]], 0.0))
    said = [stream.begins(0)]
    for at in range(count):
        logprobs = [TokenLogprobs(at, -0.5, top)] if top is not None else []
        said.append(stream.piece(0, [Content("word ")], [at], logprobs))
    told = [each for each in said if each]
    return len(told), sum(map(len, told)), told[-1]


@pytest.mark.parametrize("top", [None, TOP])
def test_a_stream_of_generate_grows_by_a_part_of_itself(top: list[tuple[int, float]] | None) -> None:
    events, short, _ = native(5_000, top)
    more_events, long, last = native(10_000, top)
    assert long < 2.3 * short  # it was 4
    assert more_events - events < 300
    told = json.loads(last.removeprefix(b"data: "))
    assert len(told["output_ids"]) > 9_900  # what is left comes with its end


def test_an_answer_of_usual_length_has_an_event_for_each_token() -> None:
    count = EACH_BYTES // 20
    events, _, last = native(count, None)
    assert events == count
    assert json.loads(last.removeprefix(b"data: "))["text"] == "word " * count


def counted(asked: list[int]) -> TokenText:
    """Notes the tokens whose text it is asked for."""

    def token_text(token_id: int) -> tuple[str, bytes]:
        asked.append(token_id)
        return "a", b"a"

    return token_text


def test_no_logprob_of_generate_is_written_twice() -> None:
    asked: list[int] = []
    stream = NativeStream(NativeSaying(["a"], [[1]], 0.0, counted(asked)))
    logprobs = [TokenLogprobs(at, -0.5, TOP) for at in range(50)]
    for each in logprobs:
        stream.piece(0, [Content("a")], [each.token_id], [each])
    ended = stream.choice_ends(ChoiceAnswer(0, "a" * 50, token_ids=list(range(50)), logprobs=logprobs))
    assert len(asked) == 50 * 3
    meta = json.loads(ended.removeprefix(b"data: "))["meta_info"]
    assert [logprob for logprob, _, _ in meta["output_token_logprobs"]] == [-0.5] * 50
    assert meta["output_token_logprobs_length"] == 50


def test_no_logprob_of_a_response_is_written_twice() -> None:
    asked: list[int] = []
    stream = ResponsesStream(ResponseHead("r", 0, "m", {}, token_text=counted(asked)))
    logprobs = [TokenLogprobs(at, -0.5, TOP) for at in range(50)]
    stream.begins(0)
    for each in logprobs:
        stream.piece(0, [Content("a")], [each.token_id], [each])
    ended = stream.choice_ends(ChoiceAnswer(0, "a" * 50)) + stream.ends(USAGE)
    assert len(asked) == 50 * 3
    last = json.loads(ended.split(b"data: ")[-1])
    content = last["response"]["output"][0]["content"][0]
    assert [each["logprob"] for each in content["logprobs"]] == [-0.5] * 50
    assert ended.count(b'"top_logprobs"') == 4 * 50  # four events hold all
