"""SGLang plugin: a NaN or an infinity among one request's logits ends that request alone.

Way:   entry point of the group `sglang.srt.plugins`, in every scheduler: SGLang's sampler -> [guard_sampler], which
       makes such rows harmless and notes them -> SGLang's result, on the host -> [judge_results] -> the request's abort
Why:   torch.multinomial refuses a whole batch for one such row: on a CPU by an error, which ends the scheduler, on a
       GPU by an assertion on the device, after which its CUDA context is of no use any more
Out:   the leg's end with MESSAGE (disagg/sglang/leg.py makes NotANumber of it). Other rows keep their tokens
Cost:  a maximum and a fill over the logits, and a byte a row to the host beside the tokens. The host waits for nothing
Not:   the verifier of speculative decoding samples by itself. With pipeline parallelism (only the last rank sees the
       logits) rows are made harmless and nobody is told; SGLang's own SGLANG_SANITIZE_NAN_LOGITS does no more anywhere
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from disagg.plane.messages import NOT_A_NUMBER
from disagg.sglang.plugins.instead import acts_here, instead_of

log = logging.getLogger(__name__)

MESSAGE = f"{NOT_A_NUMBER}: the logits of this request hold NaN or an infinity"
_STATUS = 500
_NOTED = "disagg_not_numbers"  # of a result, and of its token ids until they are copied: a bool a row


def activate() -> None:
    if not acts_here("not_a_number"):
        return
    from sglang.srt.layers.sampler import Sampler
    from sglang.srt.managers.schedule_batch import FINISH_ABORT
    from sglang.srt.managers.scheduler import Scheduler
    from sglang.srt.managers.utils import GenerationBatchResult

    guard_sampler(Sampler)
    carry_notes(GenerationBatchResult)
    judge_results(Scheduler, lambda: FINISH_ABORT(MESSAGE, _STATUS))


def guard_sampler(sampler: Any) -> None:
    @instead_of(sampler)
    def forward(self: Any, logits_output: Any, sampling_info: Any, *args: Any, **kwargs: Any) -> Any:
        noted = make_harmless(logits_output.next_token_logits, sampling_info.temperatures)
        token_ids = forward.real(self, logits_output, sampling_info, *args, **kwargs)
        setattr(token_ids, _NOTED, noted)
        return token_ids


def make_harmless(logits: Any, temperatures: Any) -> Any:
    """Rows with a NaN or +inf, now or once divided by their temperature, become all zeros (as do rows that are -inf
    throughout). Which they are: on the host, once the stream has come so far."""
    import torch

    largest = logits.amax(dim=-1, keepdim=True).float()  # NaN where a row holds one
    if len(temperatures) == len(logits):
        largest = largest / temperatures.view(-1, 1)
    is_bad = (largest - largest) != 0  # NaN where it is no number: two kernels, where isfinite has four
    logits.masked_fill_(is_bad, 0.0)
    if not logits.is_cuda:
        return is_bad.view(-1)
    noted = torch.empty(len(logits), dtype=torch.bool, pin_memory=True)
    return noted.copy_(is_bad.view(-1), non_blocking=True)


def carry_notes(result_class: Any) -> None:
    """SGLang puts a copy on the host in the place of the token ids, and records `copy_done` after it."""

    @instead_of(result_class)
    def copy_to_cpu(self: Any, *args: Any, **kwargs: Any) -> Any:
        setattr(self, _NOTED, getattr(self.next_token_ids, _NOTED, None))
        return copy_to_cpu.real(self, *args, **kwargs)


def judge_results(scheduler_class: Any, abort: Callable[[], Any]) -> None:
    @instead_of(scheduler_class)
    def process_batch_result(self: Any, batch: Any, result: Any, *args: Any, **kwargs: Any) -> Any:
        for request in _bad_requests(batch, result):
            if is_alone(self):
                log.error("request %s: %s", request.rid, MESSAGE)
                request.skip_radix_cache_insert = True  # its KV may hold NaN, too
                request.disagg_not_a_number = True
                if self.disaggregation_mode.value != "prefill":
                    request.to_finish = abort()
            else:
                log.error("request %s: %s; with pipeline parallelism it goes on", request.rid, MESSAGE)
        return process_batch_result.real(self, batch, result, *args, **kwargs)

    @instead_of(scheduler_class)
    def send_kv_chunk(self: Any, req: Any, last_chunk: bool = False, *args: Any, **kwargs: Any) -> Any:
        """Fails the transfer of such a request: so its prefill leg ends, and decode makes no token from its KV."""
        if not (last_chunk and getattr(req, "disagg_not_a_number", False) and hasattr(req.disagg_kv_sender, "abort")):
            return send_kv_chunk.real(self, req, last_chunk, *args, **kwargs)
        req.finished_reason = abort()
        req.disagg_kv_sender.abort()
        return None


def is_alone(scheduler: Any) -> bool:
    """Whether this rank sees every logit that its group ends a request by."""
    return int(scheduler.server_args.pp_size) == 1


def _bad_requests(batch: Any, result: Any) -> list[Any]:
    noted = getattr(result, _NOTED, None)
    if noted is None:
        noted = getattr(getattr(result, "next_token_ids", None), _NOTED, None)
    if noted is None:
        return []
    done = result.copy_done
    if done is not None:
        done.synchronize()  # as SGLang does next
    elif noted.is_pinned():
        import torch

        torch.cuda.current_stream().synchronize()
    if not noted.any():
        return []
    rows = zip(batch.reqs, noted.tolist(), strict=False)
    return [request for request, bad in rows if bad and not request.finished() and not is_within_prompt(request)]


def is_within_prompt(request: Any) -> bool:
    """Whether this is a chunk that is not its prompt's last: its token would be thrown away in any case."""
    return int(getattr(request, "inflight_middle_chunks", 0)) > 0
