"""In a decode engine's schedulers: a place for the logprobs of chosen ids (token_ids_logprob) of the first token.

Why:   prefill hands its token over without them, and SGLang before 0.5.23 leaves no place for them: its list is one
       shorter than its tokens, and pieces of a stream lose an entry each. Prefill tells them with its own leg
       (disagg/coordinator/attempt.py joins the two)
Cost:  nothing but for requests that ask for such logprobs
"""

from __future__ import annotations

from typing import Any

from disagg.sglang.plugins.instead import instead_of


def activate() -> None:
    from sglang.srt.disaggregation.decode import DecodeTransferQueue

    leave_a_place(DecodeTransferQueue)


def leave_a_place(queue_class: Any) -> None:
    @instead_of(queue_class)
    def _commit_transfer_to_req(self: Any, decode_req: Any, *args: Any, **kwargs: Any) -> Any:
        said = decode_req.req.logprob
        committed = _commit_transfer_to_req.real(self, decode_req, *args, **kwargs)
        if decode_req.req.return_logprob and said.token_ids_logprob is not None:
            for rows in (said.output_token_ids_logprobs_val, said.output_token_ids_logprobs_idx):
                rows.extend([] for _ in range(len(said.output_token_logprobs_val) - len(rows)))
        return committed
