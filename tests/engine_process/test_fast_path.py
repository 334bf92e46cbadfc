"""Tokens that skip SGLang's TokenizerManager come in the order and number of those that do not."""

from __future__ import annotations

import asyncio
import json
from array import array
from dataclasses import dataclass, field
from typing import Any, ClassVar

import msgspec
import pytest

from disagg.plane.engine import Leg
from disagg.sglang.fast_path import VARIABLE, open_fast_path, part_of
from disagg.sglang.leg import SGLangLeg


class BatchTokenIDOutput(msgspec.Struct, kw_only=True):
    """As SGLang's, in what matters here."""

    rids: list[str]
    finished_reasons: list[dict[str, Any] | None]
    output_ids: list[Any] | None
    cached_tokens: list[int]
    logprobs: list[float] = []
    placeholder: None = None
    customized_info: object = None
    time_stats: object = None


def batch(*of: tuple[str, int, str | None]) -> BatchTokenIDOutput:
    return BatchTokenIDOutput(
        rids=[rid for rid, _, _ in of],
        finished_reasons=[{"type": reason} if reason else None for _, _, reason in of],
        output_ids=[array("i", [token]) for _, token, _ in of],
        cached_tokens=[token * 10 for _, token, _ in of],
        time_stats=json.dumps([f"times of {rid}" for rid, _, _ in of]),
    )


@dataclass
class State:
    out_list: list[Any] = field(default_factory=list)
    event: asyncio.Event = field(default_factory=asyncio.Event)


class Manager:
    """SGLang's way: a chunk into the state's list, an event, a task that wakes later."""

    enable_metrics = False

    def __init__(self) -> None:
        self.rid_to_state: dict[str, State] = {}
        self.slow_path: list[str] = []

    async def _handle_batch_output(self, of: Any) -> None:
        of.time_stats = json.loads(of.time_stats) if isinstance(of.time_stats, str) else of.time_stats
        assert of.time_stats == [f"times of {rid}" for rid in of.rids]
        for index, rid in enumerate(of.rids):
            self.slow_path.append(f"{rid} {of.output_ids[index][0]}")
            state, reason = self.rid_to_state[rid], of.finished_reasons[index]
            meta = {"finish_reason": reason, "cached_tokens": of.cached_tokens[index]}
            state.out_list.append({"output_ids": list(of.output_ids[index]), "meta_info": meta})
            state.event.set()
            if reason:
                del self.rid_to_state[rid]

    async def async_generate(self, rid: str, **_: Any) -> Any:
        state = self.rid_to_state[rid] = State()

        async def chunks() -> Any:
            while True:
                await state.event.wait()
                out, state.out_list = state.out_list, []
                state.event.clear()
                merged = out[-1] | {"output_ids": [each for chunk in out for each in chunk["output_ids"]]}
                yield merged
                if merged["meta_info"]["finish_reason"]:
                    return

        return chunks()


class Sink:
    def __init__(self) -> None:
        self.ids: list[int] = []
        self.end: tuple[str, int] | None = None

    def on_tokens(self, token_ids: list[int], _logprobs: object = None) -> None:
        self.ids += token_ids

    def on_stage(self, name: str, cached_tokens: int | None = None) -> None: ...

    def on_end(self, reason: str, _detail: str, cached_tokens: int, _stats: object, *_more: object) -> None:
        self.end = reason, cached_tokens


async def start(manager: Manager, legs: dict[str, SGLangLeg], rid: str) -> Sink:
    sink = Sink()
    leg = legs[rid] = SGLangLeg(Leg(rid, [1], {}, 0, None), sink, manager, came_round_at_s=lambda: 0.0)
    leg.begin(manager, on_end=lambda: legs.pop(rid))
    await asyncio.sleep(0)
    return sink


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_first_and_last_tokens_take_the_slow_path_and_the_others_the_fast_one() -> None:
    manager, legs = Manager(), dict[str, SGLangLeg]()
    assert open_fast_path(manager, legs, json.loads)
    a, b = await start(manager, legs, "a"), await start(manager, legs, "b")
    for of in (
        batch(("a", 1, None)),
        batch(("a", 2, None), ("b", 11, None)),
        batch(("a", 3, None), ("b", 12, None)),
        batch(("a", 4, "length"), ("b", 13, None)),
    ):
        await manager._handle_batch_output(of)
        await settle()
    assert (a.ids, a.end) == ([1, 2, 3, 4], ("length", 40))
    assert b.ids == [11, 12, 13]
    assert manager.slow_path == ["a 1", "b 11", "a 4"]


async def test_no_token_overtakes_one_that_waits_on_the_slow_path() -> None:
    manager, legs = Manager(), dict[str, SGLangLeg]()
    open_fast_path(manager, legs, json.loads)
    sink = await start(manager, legs, "a")
    for token in range(1, 6):  # steps quicker than the leg's task
        await manager._handle_batch_output(batch(("a", token, None)))
        if token == 3:
            await settle()
    await manager._handle_batch_output(batch(("a", 6, "stop")))
    await settle()
    assert sink.ids == [1, 2, 3, 4, 5, 6]
    assert manager.slow_path == ["a 1", "a 2", "a 3", "a 6"]


async def test_an_unknown_message_goes_the_slow_path_whole() -> None:
    manager, legs = Manager(), dict[str, SGLangLeg]()
    open_fast_path(manager, legs, json.loads)
    sink = await start(manager, legs, "a")
    for token in (1, 2, 3):
        of = batch(("a", token, None))
        of.customized_info = b"pickled"
        await manager._handle_batch_output(of)
        await settle()
    assert sink.ids == [1, 2, 3]
    assert len(manager.slow_path) == 3


def test_a_part_of_a_batch_holds_its_requests_alone() -> None:
    whole = batch(("a", 1, None), ("b", 2, "stop"), ("c", 3, None))
    whole.time_stats = ["a", "b", "c"]
    part = part_of(whole, [1])
    assert (part.rids, part.finished_reasons, part.cached_tokens) == (["b"], [{"type": "stop"}], [20])
    assert (part.logprobs, part.placeholder, part.time_stats) == ([], None, ["b"])


class Counting(Manager):
    enable_metrics = True


class Other:
    rid_to_state: ClassVar[dict[str, State]] = {}

    def _handle_batch_output(self, of: Any) -> None: ...


@pytest.mark.parametrize(("manager", "says"), [(Counting(), "1"), (Other(), "1"), (Manager(), "0")])
def test_it_stays_closed(manager: Any, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, says)
    before = manager._handle_batch_output
    assert not open_fast_path(manager, {}, json.loads)
    assert manager._handle_batch_output == before
