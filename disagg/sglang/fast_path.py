"""A running leg's tokens, taken out of SGLang's batches before its TokenizerManager sees them.

Way:   scheduler -> TokenizerManager's socket -> [fast path] -> LegSink; the rest of the batch goes on to SGLang
In:    BatchTokenIDOutput, one an engine step
Out:   the same ids in the same order as through SGLang's TokenizerManager. A request's first and last chunks always go
       through that, so that SGLang's own records (times, states, finish reasons) stay right
Fails: never. If SGLang is not as expected (another message type, its metrics on, a message that is not all lists of one
       entry a request), every token goes through the TokenizerManager. `DISAGG_FAST_PATH=0` asks for that

Why: SGLang makes of each token two dicts, a future with a timer, and a step of a task: figures in docs/performance.md.
"""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from disagg.sglang.leg import SGLangLeg

log = logging.getLogger(__name__)

VARIABLE = "DISAGG_FAST_PATH"


def open_fast_path(manager: Any, legs: Mapping[str, SGLangLeg], unwrap: Callable[[Any], Any]) -> bool:
    """Returns whether the path is open. `unwrap`: SGLang's function that unpickles a part of a message."""
    if os.environ.get(VARIABLE) == "0":
        return False
    handler = getattr(manager, "_handle_batch_output", None)
    if not inspect.iscoroutinefunction(handler) or not hasattr(manager, "rid_to_state"):
        log.warning("this SGLang hands its outputs on in a way that is not known here: tokens go its own, slower way")
        return False
    if getattr(manager, "enable_metrics", True):
        return False  # SGLang counts each token
    slow_path: Callable[[Any], Awaitable[None]] = manager._handle_batch_output

    async def fast_path(batch: Any) -> None:
        if not _is_plain(batch):
            await slow_path(batch)
            return
        states, left = manager.rid_to_state, []
        for index, rid in enumerate(batch.rids):
            leg = legs.get(rid)
            if leg is not None and batch.finished_reasons[index] is None and leg.takes_tokens(states.get(rid)):
                leg.push(list(batch.output_ids[index]))
            else:
                left.append(index)
        if not left:
            return
        if len(left) < len(batch.rids):
            batch.time_stats = unwrap(batch.time_stats)  # pickled whole
            batch = part_of(batch, left)
        await slow_path(batch)

    manager._handle_batch_output = fast_path
    return True


def part_of(batch: Any, indexes: list[int]) -> Any:
    """The same message for some of its requests: lists of one entry a request are cut, the rest is kept."""
    count = len(batch.rids)
    fields = {name: getattr(batch, name) for name in batch.__struct_fields__}
    for name, value in fields.items():
        if isinstance(value, list) and len(value) == count:
            fields[name] = [value[index] for index in indexes]
    return type(batch)(**fields)


def _is_plain(batch: Any) -> bool:
    return (
        type(batch).__name__ == "BatchTokenIDOutput"
        and batch.customized_info is None
        and batch.output_ids is not None
        and len(batch.output_ids) == len(batch.finished_reasons) == len(batch.rids)
    )
