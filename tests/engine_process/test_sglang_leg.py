"""A leg ends once SGLang has let go of it, however its abort meets SGLang; and SGLang's traps are stepped around."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from disagg.plane.engine import LOADED, Leg
from disagg.sglang import leg as sglang_leg
from disagg.sglang.leg import SGLangLeg

LEG = Leg("a" * 34, [1, 2, 3], {"max_new_tokens": 5}, 0, None)
AGAIN_S = 0.02
LIMIT_S = 0.2


@dataclass
class State:
    chunks: asyncio.Queue[dict[str, Any]] = field(default_factory=asyncio.Queue)
    dispatched: bool = False
    abort_sent: bool = False


class FakeSGLang:
    """TokenizerManager and Engine in one, with 0.5.20's manners. `free`: the request may be dispatched; `known`: its
    state is made (SGLang does so before it first waits)."""

    def __init__(self) -> None:
        self.rid_to_state: dict[str, State] = {}
        self.free = asyncio.Event()
        self.free.set()
        self.known = asyncio.Event()
        self.known.set()
        self.aborts = 0  # that reached the scheduler
        self.was_asked = False

    async def async_generate(self, **arguments: Any) -> AsyncIterator[dict[str, Any]]:
        self.was_asked = True
        return self._stream(arguments["rid"])

    async def _stream(self, rid: str) -> AsyncIterator[dict[str, Any]]:
        if not self.known.is_set():
            await self.known.wait()
        state = self.rid_to_state[rid] = State()
        try:
            await self.free.wait()
            state.dispatched = True
            while True:
                chunk = await state.chunks.get()
                yield chunk
                if chunk["meta_info"]["finish_reason"]:
                    return
        except BaseException:
            if not state.dispatched:
                del self.rid_to_state[rid]
            raise

    def abort_request(self, rid: str) -> None:
        state = self.rid_to_state.get(rid)
        if state is not None and not state.abort_sent:
            state.abort_sent = True
            self.aborts += 1

    def says(self, *ids: int, finish: str | None = None, message: str = "", **more: Any) -> None:
        reason = {"type": finish, "message": message} if finish else None
        chunk = {"output_ids": list(ids), "meta_info": {"finish_reason": reason, "cached_tokens": 0, **more}}
        self.rid_to_state[LEG.id].chunks.put_nowait(chunk)
        if finish:
            del self.rid_to_state[LEG.id]


class Sink:
    def __init__(self) -> None:
        self.token_ids: list[int] = []
        self.stages: list[str] = []
        self.ends: list[tuple[str, str]] = []
        self.stats: dict[str, float] = {}

    def on_tokens(self, token_ids: list[int], _logprobs: object = None) -> None:
        self.token_ids += token_ids

    def on_stage(self, name: str, cached_tokens: int | None = None) -> None:
        self.stages.append(name)

    def on_end(self, reason: str, detail: str, _cached: int, stats: dict[str, float], *_more: object) -> None:
        self.ends.append((reason, detail))
        self.stats = stats


class Scene:
    def __init__(self) -> None:
        self.sglang, self.sink = FakeSGLang(), Sink()
        self.came_round_at_s = 0.0
        self.leg = SGLangLeg(LEG, self.sink, self.sglang, came_round_at_s=lambda: self.came_round_at_s)

    def begin(self) -> None:
        self.leg.begin(self.sglang, on_end=lambda: None)

    async def begun(self) -> Scene:
        self.begin()
        await asyncio.sleep(0.01)
        return self

    async def end(self, limit_s: float = 2.0) -> tuple[str, str]:
        async with asyncio.timeout(limit_s):
            while not self.sink.ends:
                await asyncio.sleep(0.005)
        await asyncio.sleep(0.05)
        assert len(self.sink.ends) == 1
        return self.sink.ends[0]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sglang_leg, "ABORT_AGAIN_S", AGAIN_S)
    monkeypatch.setattr(sglang_leg, "ABORT_S", LIMIT_S)


async def test_an_aborted_leg_ends_with_sglangs_last_chunk_and_not_before() -> None:
    scene = await Scene().begun()
    scene.leg.abort()
    await asyncio.sleep(0.1)
    assert scene.sglang.aborts == 1
    assert not scene.sink.ends, "its KV is still taken"
    scene.sglang.says(9, finish="abort", message="Aborted")
    assert await scene.end() == ("abort", "Aborted")
    assert scene.sink.token_ids == [], "SGLang repeats the last token in an abort's chunk"


async def test_an_abort_before_the_leg_has_begun_never_reaches_sglang() -> None:
    scene = Scene()
    scene.begin()
    scene.leg.abort()
    assert await scene.end() == ("abort", "")
    assert not scene.sglang.was_asked


async def test_an_abort_before_dispatch_drops_the_request() -> None:
    scene = Scene()
    scene.sglang.free.clear()
    await scene.begun()
    scene.leg.abort()
    assert await scene.end() == ("abort", "")
    assert not scene.sglang.rid_to_state
    assert scene.sglang.aborts == 0, "it would have been lost"


async def test_a_lost_abort_is_sent_again(quick: None) -> None:
    scene = await Scene().begun()
    scene.leg.abort()
    await asyncio.sleep(AGAIN_S * 3)
    assert scene.sglang.aborts >= 2
    scene.sglang.says(finish="abort")
    assert (await scene.end())[0] == "abort"


async def test_an_abort_before_sglang_knows_of_the_request_is_sent_once_it_does(quick: None) -> None:
    scene = Scene()
    scene.sglang.known.clear()
    await scene.begun()
    scene.leg.abort()
    assert scene.sglang.aborts == 0
    scene.sglang.known.set()
    await asyncio.sleep(AGAIN_S * 2)
    assert scene.sglang.aborts >= 1
    scene.sglang.says(finish="abort")
    assert (await scene.end())[0] == "abort"


async def test_an_aborted_leg_whose_last_chunk_never_comes_ends_all_the_same(quick: None) -> None:
    scene = await Scene().begun()
    del scene.sglang.rid_to_state[LEG.id]
    scene.leg.abort()
    scene.came_round_at_s = time.monotonic() + 1
    reason, detail = await scene.end()
    assert reason == "abort"
    assert "has not confirmed" in detail


async def test_a_scheduler_that_answers_no_abort_is_given_up(quick: None) -> None:
    scene = await Scene().begun()
    scene.leg.abort()
    scene.came_round_at_s = time.monotonic() + 1
    began = time.monotonic()
    reason, detail = await scene.end()
    assert time.monotonic() - began >= LIMIT_S
    assert reason == "abort"
    assert "has not confirmed the abort" in detail


async def test_a_scheduler_inside_a_long_chunk_is_waited_for(quick: None) -> None:
    scene = await Scene().begun()
    scene.leg.abort()
    await asyncio.sleep(LIMIT_S * 2)
    assert not scene.sink.ends, "its loop has not come round: it cannot have seen the abort"
    scene.came_round_at_s = time.monotonic()
    scene.sglang.says(finish="abort")
    assert await scene.end() == ("abort", "")


async def test_a_scheduler_that_never_comes_round_is_given_up_too(quick: None) -> None:
    scene = Scene()
    scene.leg = SGLangLeg(LEG, scene.sink, scene.sglang, came_round_at_s=lambda: 0.0, abort_longest_s=2 * LIMIT_S)
    await scene.begun()
    scene.leg.abort()
    began = time.monotonic()
    assert "has not confirmed" in (await scene.end())[1]
    assert time.monotonic() - began >= 2 * LIMIT_S


async def test_a_grammar_that_is_none_ends_it_with_the_reason_alone() -> None:
    scene = await Scene().begun()
    said = "Failed to compile regex grammar: [19:44:41] /project/cpp/regex_converter.cc:75: Unclosed '['\n"
    scene.sglang.says(finish="abort", message=said)
    assert await scene.end() == ("invalid", "Failed to compile regex grammar: Unclosed '['")


async def test_an_abort_twice_is_one() -> None:
    scene = await Scene().begun()
    scene.leg.abort()
    scene.leg.abort()
    scene.sglang.says(finish="abort")
    assert (await scene.end())[0] == "abort"
    scene.leg.abort()
    assert scene.sglang.aborts == 1


async def test_a_leg_that_had_ended_keeps_its_reason() -> None:
    scene = await Scene().begun()
    scene.sglang.says(5, 6, finish="length")
    scene.leg.abort()
    assert (await scene.end())[0] == "length"
    assert scene.sink.token_ids == [5, 6]
    assert scene.sglang.aborts == 0


async def test_stages_come_once_and_in_order() -> None:
    scene = await Scene().begun()
    for name in ("bootstrapping", "prefilling", "bootstrapping", "prefilling", "transferring", "prefilling"):
        scene.leg.on_stage(name, None)
    assert scene.sink.stages == ["bootstrapping", "prefilling", "transferring"]
    scene.sglang.says(finish="length")
    await scene.end()


async def test_a_legs_adapter_is_named_to_sglang_and_without_one_no_field_says_so() -> None:
    said = [sglang_leg._generate_arguments(dataclasses.replace(LEG, adapter=adapter)) for adapter in ("sql", "")]
    assert said[0] == {**said[1], "lora_path": "sql"}
    assert "lora_path" not in said[1]


@pytest.mark.parametrize(
    ("details", "stats"),
    [
        ({"device": 64, "host": 128}, {LOADED: 128}),
        ({"device": 64, "host": 128, "storage": 64, "storage_backend": "file"}, {LOADED: 192}),
        ({"device": 64, "host": 0}, {}),
        (None, {}),
    ],
)
async def test_what_came_from_the_hosts_memory_is_told(details: dict[str, Any] | None, stats: dict[str, float]) -> None:
    scene = await Scene().begun()
    scene.sglang.says(7, finish="length", cached_tokens=256, cached_tokens_details=details)
    await scene.end()
    assert scene.sink.stats == stats


async def test_a_legs_salt_is_named_to_sglang_and_without_one_no_field_says_so() -> None:
    """Releases until 0.5.17 have no such field, and serve who says none."""
    said = [sglang_leg._generate_arguments(dataclasses.replace(LEG, salt=salt)) for salt in ("s", "")]
    assert said[0] == {**said[1], "cache_salt": "s"}
    assert "cache_salt" not in said[1]


def test_the_requests_trace_goes_on_in_sglang() -> None:
    parent = f"00-{'a' * 32}-{'b' * 16}-01"
    arguments = sglang_leg._generate_arguments(dataclasses.replace(LEG, trace=parent))
    assert arguments["external_trace_header"] == {"traceparent": parent}
    assert "external_trace_header" not in sglang_leg._generate_arguments(LEG)
