"""Rows whose logits are no numbers are made harmless, noted without waiting, and their requests alone end."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from disagg.sglang.plugins.not_a_number import MESSAGE, carry_notes, guard_sampler, judge_results, make_harmless

torch = pytest.importorskip("torch")
INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    ("row", "temperature", "is_bad"),
    [
        ([1.0, 2.0, -INF], 1.0, False),  # -inf: what a mask takes out
        ([1.0, NAN, 2.0], 1.0, True),
        ([1.0, INF, 2.0], 1.0, True),
        ([-INF, -INF, -INF], 1.0, True),  # nothing is left to choose
        ([1e35, 1.0, 0.0], 1e-5, True),  # once divided
        ([1e30, 1.0, 0.0], 1.0, False),
        ([-INF, NAN, -INF], 1.0, True),
    ],
)
def test_a_row_is_judged_as_the_sampler_will_see_it(row: list[float], temperature: float, is_bad: bool) -> None:
    logits = torch.tensor([row, [3.0, 4.0, 5.0]])
    noted = make_harmless(logits, torch.tensor([[temperature], [1.0]]))
    assert noted.tolist() == [is_bad, False]
    assert logits[1].tolist() == [3.0, 4.0, 5.0]
    probabilities = torch.softmax(logits / torch.tensor([[temperature], [1.0]]), dim=-1)
    assert torch.multinomial(probabilities, 1).shape == (2, 1)
    assert logits[0].tolist() == ([0.0] * 3 if is_bad else torch.tensor(row).tolist())


class Sampler:
    def forward(self, logits_output: Any, sampling_info: Any, *more: Any) -> Any:
        assert torch.isfinite(logits_output.next_token_logits).all()
        return logits_output.next_token_logits.argmax(dim=-1)


class Result:
    def __init__(self, token_ids: Any) -> None:
        self.next_token_ids, self.copy_done = token_ids, None

    def copy_to_cpu(self, return_logprob: bool) -> None:
        self.next_token_ids = self.next_token_ids.clone()
        self.copy_done = SimpleNamespace(synchronize=lambda: None)


class Request:
    def __init__(self, rid: str, *, finished: bool = False, chunks: int = 0) -> None:
        self.rid, self.to_finish, self.finished_reason, self.inflight_middle_chunks = rid, None, None, chunks
        self.aborted, self.is_finished = False, finished
        self.disagg_kv_sender = SimpleNamespace(abort=lambda: setattr(self, "aborted", True))

    def finished(self) -> bool:
        return self.is_finished


def scheduler(mode: str, pp_size: int = 1) -> Any:
    class Scheduler:
        disaggregation_mode = SimpleNamespace(value=mode)
        server_args = SimpleNamespace(pp_size=pp_size)

        def __init__(self) -> None:
            self.sent: list[str] = []

        def process_batch_result(self, batch: Any, result: Any) -> None:
            for req in batch.reqs:
                self.send_kv_chunk(req, last_chunk=req.inflight_middle_chunks == 0)

        def send_kv_chunk(self, req: Any, last_chunk: bool = False, end_idx: int | None = None) -> None:
            self.sent.append(req.rid)

    judge_results(Scheduler, lambda: "an abort")
    return Scheduler()


@pytest.fixture(autouse=True)
def guarded(monkeypatch: pytest.MonkeyPatch) -> None:
    for owner, name in ((Sampler, "forward"), (Result, "copy_to_cpu")):
        monkeypatch.setattr(owner, name, getattr(owner, name))
    guard_sampler(Sampler)
    carry_notes(Result)


def sampled() -> Any:
    logits = torch.tensor([[1.0, 2.0], [NAN, 1.0], [INF, 0.0], [NAN, NAN]])
    return Sampler().forward(
        SimpleNamespace(next_token_logits=logits), SimpleNamespace(temperatures=torch.ones(4, 1)), False
    )


@pytest.mark.parametrize("overlaps", [False, True])
def test_in_decode_the_request_ends_with_an_error_and_the_others_go_on(overlaps: bool) -> None:
    result = Result(sampled())
    if overlaps:
        result.copy_to_cpu(return_logprob=False)
    well, bad, over, within = Request("well"), Request("bad"), Request("over", finished=True), Request("part", chunks=1)
    scheduler("decode").process_batch_result(SimpleNamespace(reqs=[well, bad, over, within]), result)
    assert [r.to_finish for r in (well, bad, over, within)] == [None, "an abort", None, None]


def test_in_prefill_its_transfer_fails_and_no_other() -> None:
    well, bad = Request("well"), Request("bad")
    it = scheduler("prefill")
    it.process_batch_result(SimpleNamespace(reqs=[well, bad]), Result(sampled()))
    assert (it.sent, well.aborted, bad.aborted, bad.finished_reason) == (["well"], False, True, "an abort")


def test_with_pipeline_parallelism_no_rank_ends_what_the_others_go_on_with() -> None:
    bad = Request("bad")
    scheduler("decode", pp_size=2).process_batch_result(SimpleNamespace(reqs=[Request("well"), bad]), Result(sampled()))
    assert bad.to_finish is None


def test_a_result_without_tokens_is_let_through() -> None:
    scheduler("decode").process_batch_result(SimpleNamespace(reqs=[Request("a")]), Result(None))
    assert MESSAGE.startswith("not a number: ")
