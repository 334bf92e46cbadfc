"""An engine that costs nothing: for tests and benchmarks of everything in front of the engines.

It answers a leg with `max_new_tokens` ids, `per_step` at a time, all legs of a step together, as an SGLang step does.
It knows nothing of rooms or KV, and `disagg serve` cannot be told to use it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from disagg.adapters import Adapter
from disagg.plane.engine import EngineFacts, Leg, LegSink
from disagg.plane.messages import MetricFamily, RankHealth, RankLoad, TokenLogprobs

KV_TOKENS = 1 << 20
FACTS = EngineFacts(
    context_length=8192,
    kv_tokens=KV_TOKENS,
    request_tokens_max=8192,
    requests_max=4096,
)


@dataclass(slots=True, eq=False)
class _StubLeg:
    leg: Leg
    sink: LegSink
    sent: int = 0


class StubEngine:
    """`step_s`: 0 answers as fast as it can. `hold`: legs wait until `release`.

    `token`: the id it emits; None: each token's position in its sequence, so that a gap or a repeat shows.
    `script`: what it says instead, over and over. Logprobs are made up where a leg asks for them.
    """

    def __init__(
        self,
        *,
        step_s: float = 0.0,
        per_step: int = 1,
        token: int | None = 260,
        script: Sequence[int] = (),
        hold: bool = False,
        facts: EngineFacts = FACTS,
    ) -> None:
        self._step_s, self._per_step, self._token, self._facts = step_s, per_step, token, facts
        self._script = script
        self._running: set[_StubLeg] = set()
        self._stepping: asyncio.Task[None] | None = None
        self.dropped_peers: list[str] = []
        self.legs: list[Leg] = []
        self.adapters: dict[str, str] = {}
        self.adapter_trouble = ""  # why none can be loaded
        self._free = asyncio.Event()
        if not hold:
            self._free.set()

    def start(self) -> EngineFacts:
        return self._facts

    def submit(self, leg: Leg, sink: LegSink) -> object:
        handle = _StubLeg(leg, sink)
        self.legs.append(leg)
        self._running.add(handle)
        if self._stepping is None or self._stepping.done():
            self._stepping = asyncio.get_running_loop().create_task(self._steps())
        return handle

    def abort(self, handle: object) -> None:
        assert isinstance(handle, _StubLeg)
        if handle in self._running:
            self._running.discard(handle)
            handle.sink.on_end("abort", "", 0, {})

    def fail(self, request_id: str, detail: str, reason: str = "error") -> None:
        """Ends the running legs of a request with an error."""
        for handle in [h for h in self._running if h.leg.id.startswith(request_id)]:
            self._running.discard(handle)
            handle.sink.on_end(reason, detail, 0, {})

    def release(self) -> None:
        self._free.set()

    def freeze(self) -> None:
        """No leg goes on, and nobody is told."""
        if self._stepping is not None:
            self._stepping.cancel()

    def running(self, request_id: str) -> list[Leg]:
        return [handle.leg for handle in self._running if handle.leg.id.startswith(request_id)]

    def loads(self) -> list[RankLoad]:
        return [RankLoad(0, len(self._running), 0, 0, KV_TOKENS, time.time())]

    def metrics(self, labels: str) -> list[MetricFamily]:
        return []

    def health(self) -> list[RankHealth]:
        return [RankHealth(0, "", 0.0, 0.0)]

    async def flush_cache(self, wait_s: float) -> str:
        return "legs run" if self._running else ""

    def drop_peer(self, life: str) -> None:
        self.dropped_peers.append(life)

    async def load_adapter(self, adapter: Adapter) -> None:
        if self.adapter_trouble:
            raise ValueError(self.adapter_trouble)
        self.adapters[adapter.name] = adapter.path

    async def unload_adapter(self, name: str) -> None:
        del self.adapters[name]

    def stop(self) -> None:
        self._running.clear()

    async def _steps(self) -> None:
        await self._free.wait()
        while self._running:
            for handle in list(self._running):
                count = min(self._per_step, handle.leg.sampling["max_new_tokens"] - handle.sent)
                tokens = self._tokens(handle, count)
                handle.sink.on_tokens(tokens, _logprobs(handle.leg, tokens))
                handle.sent += count
                if handle.sent >= handle.leg.sampling["max_new_tokens"]:
                    self._running.discard(handle)
                    handle.sink.on_end("length", "", 0, {})
            await asyncio.sleep(self._step_s)

    def _tokens(self, handle: _StubLeg, count: int) -> list[int]:
        places = range(handle.sent, handle.sent + count)
        if self._script:
            return [self._script[place % len(self._script)] for place in places]
        return [len(handle.leg.prompt_ids) + place if self._token is None else self._token for place in places]


def _logprobs(leg: Leg, tokens: list[int]) -> list[TokenLogprobs] | None:
    if not leg.asks.get("return_logprob"):
        return None
    top = [(token_id, -0.5) for token_id in range(leg.asks["top_logprobs_num"])]
    return [TokenLogprobs(token, -0.5, top) for token in tokens]
