"""One request inside SGLang, from submit until SGLang holds nothing of it any more.

Way:   SGLangEngine.submit -> [SGLangLeg] -> TokenizerManager -> scheduler rank; chunks come back to a LegSink
Fails: a leg's failure is its `on_end("error", …)`. An aborted leg ends with SGLang's own last chunk, which comes once
       the KV is free; if that does not come in time, the leg ends without it, and its `detail` says so

SGLang's traps with aborts: an abort before the request was dispatched is lost; after one abort all later ones do
nothing (`abort_sent`), even if the first was lost; an abort ends every request whose id begins with the id it names
(our ids all have one length).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Any

from disagg.plane.engine import LOADED, Leg, LegSink
from disagg.plane.messages import INVALID, NOT_A_NUMBER, TokenLogprobs
from disagg.sglang.input_ids import input_ids
from disagg.sglang.logprobs import input_logprobs, output_logprobs
from disagg.sglang.refusals import for_the_client
from disagg.sglang.stages import STAGES

REASONS = {"stop": "stop", "length": "length"}  # SGLang's finish types that are not failures
ABORT_AGAIN_S = 1.0
ABORT_S = 5.0  # from the abort, or from the first round of the scheduler's loop after it, to SGLang's last chunk
ABORT_LONGEST_S = 30.0  # a scheduler sees an abort only after the chunk that it computes


class SGLangLeg:
    """`came_round_at_s`: when the loop of the leg's rank last did (monotonic). `abort_longest_s`: see above."""

    def __init__(
        self,
        leg: Leg,
        sink: LegSink,
        tokenizer_manager: Any,
        *,
        came_round_at_s: Callable[[], float],
        abort_longest_s: float = ABORT_LONGEST_S,
    ) -> None:
        self.leg, self._sink, self._manager = leg, sink, tokenizer_manager
        self._came_round_at_s, self._abort_longest_s = came_round_at_s, abort_longest_s
        self._task: asyncio.Task[None] | None = None
        self._stage_index = -1
        self._has_begun = self._ended = False
        self._abort_asked_at_s: float | None = None
        self._abort_seen_at_s: float | None = None  # the scheduler's loop came round after the abort
        self._again: asyncio.TimerHandle | None = None
        self._gave_up = ""

    def begin(self, engine: Any, on_end: Callable[[], object]) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run(engine, on_end), name=f"leg {self.leg.id}")

    def on_stage(self, name: str, cached_tokens: int | None) -> None:
        """Passes each stage on once, in order: stages that a retracted request goes through again are dropped."""
        index = STAGES.index(name)
        if index > self._stage_index and not self._ended:
            self._stage_index = index
            self._sink.on_stage(name, cached_tokens)

    def takes_tokens(self, state: Any) -> bool:
        """Whether the fast path may deliver: not the first tokens, not while earlier ones are still in the
        TokenizerManager, not after the end, and not of a leg that is asked for more than tokens."""
        return (
            self._has_begun
            and not self._ended
            and not self.leg.asks
            and state is not None
            and not (state.out_list or state.event.is_set())
        )

    def push(self, token_ids: list[int]) -> None:
        self._sink.on_tokens(token_ids)

    def abort(self) -> None:
        if self._abort_asked_at_s is not None or self._ended or self._task is None:
            return
        self._abort_asked_at_s = time.monotonic()
        state = self._manager.rid_to_state.get(self.leg.id)
        if state is not None and not getattr(state, "dispatched", True):
            self._task.cancel()  # SGLang drops a request that it has not dispatched
            return
        # No state means one of two things. SGLang has ended the request, and its last chunk is about to be read. Or
        # SGLang does not know it yet, and `_run` will see the abort first (a task cancelled before it began would not
        # run at all). There is no gap between the two: 0.5.16 to 0.5.23 make the state before their first await. A
        # release that did not would ignore this abort, and take the next one.
        self._manager.abort_request(rid=self.leg.id)
        self._again = asyncio.get_running_loop().call_later(ABORT_AGAIN_S, self._abort_again)

    async def _run(self, engine: Any, on_end: Callable[[], object]) -> None:
        reason, detail, cached, loaded = "error", "the stream ended without a reason", 0, 0
        matched: int | str | None = None
        try:
            if self._abort_asked_at_s is not None:
                raise asyncio.CancelledError
            stream = await self._stream(engine)
            async with contextlib.aclosing(stream):
                async for chunk in stream:
                    meta = chunk["meta_info"]
                    finish = meta.get("finish_reason")
                    failed = finish is not None and finish["type"] not in REASONS
                    if (ids := chunk.get("output_ids")) and not failed:
                        self._sink.on_tokens(ids, self._logprobs(meta, len(ids)))
                        self._has_begun = True
                    if finish is not None:
                        cached = int(meta.get("cached_tokens") or 0)
                        loaded = _from_host(meta)
                        detail, matched = str(finish.get("message") or ""), finish.get("matched")
                        reason, detail = _failure(detail) if failed else (REASONS[finish["type"]], detail)
        except asyncio.CancelledError:
            reason, detail = "abort", self._gave_up
        except Exception as error:  # noqa: BLE001 - SGLang refused this leg (ValueError, HTTPException, …)
            reason, detail = _failure(str(getattr(error, "detail", None) or error))
        if self._abort_asked_at_s is not None and reason in ("error", INVALID):
            reason = "abort"
        self._ended = True
        if self._again is not None:
            self._again.cancel()
        moments = getattr(self._manager, "disagg_moments", {})  # kept by disagg/sglang/plugins/transfer.py
        on_end()
        stats = moments.pop(self.leg.id, {})
        self._sink.on_end(reason, detail, cached, stats | {LOADED: loaded} if loaded else stats, matched)

    async def _stream(self, engine: Any) -> Any:
        """SGLang's chunks of this leg."""
        return await engine.async_generate(**_generate_arguments(self.leg))

    def _logprobs(self, meta: Mapping[str, Any], count: int) -> list[TokenLogprobs] | None:
        """Of a chunk's `count` tokens, if asked for; before those of the first chunk the prompt's, if asked for."""
        if not self.leg.asks:
            return None
        told = output_logprobs(meta, count)
        if self._has_begun or "logprob_start_len" not in self.leg.asks:
            return told
        return [*(input_logprobs(meta) or ()), *(told or ())]

    def _abort_again(self) -> None:
        """Called once a second after an abort: the abort may be lost, or the scheduler may be computing, or hang."""
        if self._ended or self._task is None or self._abort_asked_at_s is None:
            return
        now_s = time.monotonic()
        if self._abort_seen_at_s is None and self._came_round_at_s() > self._abort_asked_at_s:
            self._abort_seen_at_s = now_s
        waited_s = now_s - self._abort_asked_at_s
        if (self._abort_seen_at_s is not None and now_s - self._abort_seen_at_s > ABORT_S) or (
            waited_s > self._abort_longest_s
        ):
            self._gave_up = f"SGLang has not confirmed the abort within {waited_s:.0f} s"
            self._task.cancel()
            return
        state = self._manager.rid_to_state.get(self.leg.id)
        if state is not None:
            if hasattr(state, "abort_sent"):
                state.abort_sent = False
            self._manager.abort_request(rid=self.leg.id)
        self._again = asyncio.get_running_loop().call_later(ABORT_AGAIN_S, self._abort_again)


def _from_host(meta: Mapping[str, Any]) -> int:
    """Prompt tokens that were in the host's memory, or beyond (HiCache), and had to be loaded from there."""
    details = meta.get("cached_tokens_details") or {}
    return int(details.get("host") or 0) + int(details.get("storage") or 0)


def _failure(detail: str) -> tuple[str, str]:
    """The end's reason and detail for what SGLang says."""
    if NOT_A_NUMBER in detail:  # disagg/sglang/plugins/not_a_number.py
        return NOT_A_NUMBER, detail
    told = for_the_client(detail)
    return ("error", detail) if told is None else (INVALID, told)


def _generate_arguments(leg: Leg) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "input_ids": input_ids(leg.prompt_ids),
        "sampling_params": leg.sampling,
        "rid": leg.id,
        "stream": True,
        "routed_dp_rank": leg.dp_rank,
        **leg.asks,
    }
    if leg.adapter:
        arguments["lora_path"] = leg.adapter  # its name; SGLang's ids differ from engine to engine
    if leg.salt:
        arguments["cache_salt"] = leg.salt
    if leg.trace:
        arguments["external_trace_header"] = {"traceparent": leg.trace}
    if leg.bootstrap is not None:
        arguments |= {
            "bootstrap_host": leg.bootstrap.host,
            "bootstrap_port": leg.bootstrap.port,
            "bootstrap_room": leg.bootstrap.room,
            "disagg_prefill_dp_rank": leg.bootstrap.prefill_dp_rank,
        }
    return arguments
