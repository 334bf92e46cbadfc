"""In every scheduler: its loop leaves a beat each time it comes round, and the size of the batch it is in.

Way:   SGLang's event loops (each calls process_input_requests once a round) -> [here] -> disagg/sglang/heartbeat.py
Cost:  under a microsecond a round
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from disagg.sglang.heartbeat import Beat, BeatWriter
from disagg.sglang.plugins.instead import instead_of


def begin(scheduler: Any, ranks: Any, folder: Path) -> None:
    """`ranks`: where the scheduler keeps its tp_rank, dp_rank and the like."""
    dp_rank = ranks.dp_rank or 0
    attends_apart = int(getattr(ranks, "attn_dp_size", 1) or 1) > 1  # DP attention: dp ranks wait for each other
    beat = Beat(
        pid=os.getpid(),
        dp_rank=dp_rank,
        group=0 if attends_apart else dp_rank,
        requests_max=min(scheduler.max_running_requests, scheduler.req_to_token_pool.size),
        kv_tokens=scheduler.max_total_num_tokens,
        page_size=scheduler.page_size,
        chunk_tokens=scheduler.chunked_prefill_size or 0,
        at_s=time.monotonic(),
        batch_tokens=0,
        step_longest_s=0.0,
        step_longest_tokens=0,
        steps=0,
    )
    writer = BeatWriter(folder, beat, overlaps=bool(scheduler.enable_overlap))

    @instead_of(scheduler)
    def process_input_requests(*args: Any, **kwargs: Any) -> Any:
        writer.came_round()
        return process_input_requests.real(*args, **kwargs)

    @instead_of(scheduler)
    def run_batch(batch: Any, *args: Any, **kwargs: Any) -> Any:
        writer.batch_begins(batch.extend_num_tokens or len(batch.reqs) or 1)
        return run_batch.real(batch, *args, **kwargs)
