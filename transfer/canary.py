"""A request with a known shape through one real pair: the proof that KV moves between these two incarnations.

Way:   controller -> Coordinator.run on the pair -> both engines; aggregated engines answer it alone
Fails: CanaryFailed with the first reason; nothing of the canary is left in the engines
"""

from __future__ import annotations

import contextlib
import time
import uuid

from disagg.coordinator.attempt import Pair
from disagg.coordinator.coordinator import Coordinator
from disagg.coordinator.request import Request
from disagg.errors import DisaggError, RequestError

PROMPT_TOKENS = 32
NEW_TOKENS = 2  # the first is prefill's, the second decode's own, made from the KV that came
GREEDY = {"temperature": 0.0, "ignore_eos": True}


class CanaryFailed(DisaggError):
    pass


class _NoText:
    stopped = False

    def push(self, _token_ids: list[int]) -> str:
        return ""

    def flush(self) -> str:
        return ""


async def sing(coordinator: Coordinator, pair: Pair) -> None:
    """One greedy request through `pair`, on its ranks."""
    salt = uuid.uuid4()
    prompt = [salt.int % 251 + 1, *range(10, 9 + PROMPT_TOKENS)]  # a first token of its own: less is cached
    request = Request(salt.hex, prompt, GREEDY, NEW_TOKENS, _NoText(), time.monotonic())
    names = f"{pair.prefill.name} -> {pair.decode.name}" if pair.prefill else pair.decode.name
    try:
        async with contextlib.aclosing(coordinator.run(request, pair)) as pieces:
            async for _ in pieces:
                pass
    except RequestError as error:
        raise CanaryFailed(f"canary {names}", error.what) from error
    if len(request.emitted_ids) != NEW_TOKENS:
        raise CanaryFailed(f"canary {names}", f"{len(request.emitted_ids)} tokens came instead of {NEW_TOKENS}")
