"""A decode engine's lists of chosen ids' logprobs are as long as its tokens, also where SGLang forgets a place."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from disagg.sglang.logprobs import input_logprobs, output_logprobs
from disagg.sglang.plugins.first_logprobs import leave_a_place


def request(asked: list[int] | None, *, returns: bool = True) -> Any:
    said = SimpleNamespace(
        token_ids_logprob=asked,
        output_token_logprobs_val=[] if returns else None,
        output_token_ids_logprobs_val=[] if returns else None,
        output_token_ids_logprobs_idx=[] if returns else None,
    )
    return SimpleNamespace(req=SimpleNamespace(logprob=said, return_logprob=returns))


def queue(*, leaves_one: bool, commits: bool = True) -> Any:
    class Queue:
        def _commit_transfer_to_req(self, decode_req: Any) -> bool:
            said = decode_req.req.logprob
            if commits and decode_req.req.return_logprob:
                said.output_token_logprobs_val.append(-1.0)
                if leaves_one and said.token_ids_logprob is not None:
                    said.output_token_ids_logprobs_val.append([])
                    said.output_token_ids_logprobs_idx.append([])
            return commits

    leave_a_place(Queue)
    return Queue()


@pytest.mark.parametrize("leaves_one", [False, True])  # before 0.5.23, and since
def test_a_place_is_left_once(leaves_one: bool) -> None:
    asking = request([5])
    assert queue(leaves_one=leaves_one)._commit_transfer_to_req(asking)
    said = asking.req.logprob
    assert (said.output_token_ids_logprobs_val, said.output_token_ids_logprobs_idx) == ([[]], [[]])


def test_nothing_is_done_where_it_was_not_asked_for_or_nothing_came() -> None:
    for asking in (request(None), request(None, returns=False)):
        queue(leaves_one=False)._commit_transfer_to_req(asking)
        assert not asking.req.logprob.output_token_ids_logprobs_val
    late = request([5])
    assert not queue(leaves_one=False, commits=False)._commit_transfer_to_req(late)
    assert late.req.logprob.output_token_ids_logprobs_val == []


def test_what_sglang_tells_is_read() -> None:
    said = [(-0.5, 3, None), (-0.25, 4, None)]
    meta = {"output_token_logprobs": said, "output_token_ids_logprobs": [None, [(-2.0, 5, None)]]}
    told = output_logprobs(meta, 2)
    assert told is not None
    assert [each.chosen for each in told] == [[], [(5, -2.0)]]
    of_prompt = input_logprobs({"input_token_logprobs": said, "input_token_ids_logprobs": [None, [(-2.0, 5, None)]]})
    assert of_prompt is not None
    assert [(each.token_id, each.top, each.chosen) for each in of_prompt] == [(3, [], []), (4, [], [(5, -2.0)])]
