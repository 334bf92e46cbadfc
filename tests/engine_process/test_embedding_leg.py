"""An embedding leg inside SGLang, before a made-up TokenizerManager: what it asks, what it makes of answers."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from disagg.host_spec import OFF_VARIABLE
from disagg.plane.engine import Leg
from disagg.plane.messages import unpack_floats
from disagg.sglang.embedding_leg import EmbeddingLeg, take_pairs


class EmbeddingReqInput(SimpleNamespace):
    pass


@pytest.fixture(autouse=True)
def _no_sglang(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = ModuleType("sglang.srt.managers.io_struct")
    module.EmbeddingReqInput = EmbeddingReqInput
    for name in ("sglang", "sglang.srt", "sglang.srt.managers"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)


class Sink:
    def __init__(self) -> None:
        self.vector: list[float] | None = None
        self.end: tuple[str, str] | None = None
        self.ended = asyncio.Event()

    def on_tokens(self, token_ids: list[int]) -> None:
        raise AssertionError("an embedding has no tokens")

    def on_stage(self, name: str, cached_tokens: int | None = None) -> None:
        pass

    def on_embedding(self, packed: bytes) -> None:
        assert self.end is None
        self.vector = unpack_floats(packed)

    def on_end(self, reason: str, detail: str, _cached: int, _stats: dict[str, float], *_more: object) -> None:
        assert self.end is None, "a second last word"
        self.end = reason, detail
        self.ended.set()


class Manager:
    """Answers with one chunk; raises it where it is an error; None: never."""

    def __init__(self, chunk: Any) -> None:
        self.chunk = chunk
        self.asked: list[Any] = []
        self.aborted: list[str] = []
        self.rid_to_state: dict[str, Any] = {}
        self.done = asyncio.Event()

    async def generate_request(self, asked: Any) -> AsyncIterator[Any]:
        self.asked.append(asked)
        self.rid_to_state[asked.rid] = SimpleNamespace(dispatched=True)
        if self.chunk is None:
            await self.done.wait()
            yield {"embedding": [], "meta_info": {"finish_reason": {"type": "abort", "message": "Aborted"}}}
        elif isinstance(self.chunk, Exception):
            raise self.chunk
        else:
            yield self.chunk

    def abort_request(self, rid: str) -> None:
        self.aborted.append(rid)
        self.done.set()

    def _create_tokenized_object(self, asked: Any, *_args: Any) -> Any:
        return SimpleNamespace(input_ids=asked.input_ids, token_type_ids=None)


def begin(manager: Manager, **more: Any) -> tuple[EmbeddingLeg, Sink]:
    leg, sink = Leg("a" * 34, [5, 6, 7, 8], {"max_new_tokens": 0}, 0, None, embeds=True, **more), Sink()
    handle = EmbeddingLeg(leg, sink, manager, came_round_at_s=lambda: 0.0)
    handle.begin(SimpleNamespace(tokenizer_manager=manager), on_end=lambda: None)
    return handle, sink


async def over(sink: Sink) -> Sink:
    await asyncio.wait_for(sink.ended.wait(), 5)
    return sink


def chunk(embedding: Any, kind: str = "stop") -> dict[str, Any]:
    return {"embedding": embedding, "meta_info": {"finish_reason": {"type": kind, "message": "why"}}}


@pytest.mark.parametrize(("said", "vector"), [([0.5, -0.25], [0.5, -0.25]), (0.5, [0.5])])
async def test_a_vector_or_a_bare_score_comes_before_the_end(said: Any, vector: list[float]) -> None:
    manager = Manager(chunk(said, "length"))
    sink = await over(begin(manager)[1])
    assert (sink.vector, sink.end) == (vector, ("stop", ""))
    assert (manager.asked[0].rid, list(manager.asked[0].input_ids)) == ("a" * 34, [5, 6, 7, 8])


@pytest.mark.parametrize("parent", [f"00-{'a' * 32}-{'b' * 16}-01", ""])
async def test_sglangs_spans_go_below_the_legs(parent: str) -> None:
    manager = Manager(chunk([0.5]))
    await over(begin(manager, trace=parent)[1])
    assert getattr(manager.asked[0], "external_trace_header", None) == ({"traceparent": parent} if parent else None)


@pytest.mark.parametrize(("adapter", "named"), [("sql", "sql"), ("", None)])
async def test_sglang_is_told_the_adapter(adapter: str, named: str | None) -> None:
    manager = Manager(chunk([0.5]))
    await over(begin(manager, adapter=adapter)[1])
    assert vars(manager.asked[0]).get("lora_path") == named


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
async def test_a_vector_that_is_no_number_fails_alone(number: float) -> None:
    sink = await over(begin(Manager(chunk([1.0, number])))[1])
    assert sink.vector is None
    assert sink.end is not None
    assert sink.end[0] == "not a number"


@pytest.mark.parametrize(
    ("answer", "end"),
    [
        (ValueError("too long"), ("error", "too long")),
        (RuntimeError("broken"), ("error", "broken")),
        (chunk([], "abort"), ("error", "why")),
    ],
)
async def test_what_sglang_refuses_ends_it_with_the_reason(answer: Any, end: tuple[str, str]) -> None:
    sink = await over(begin(Manager(answer))[1])
    assert (sink.vector, sink.end) == (None, end)


async def test_it_is_aborted_as_any_leg() -> None:
    manager = Manager(None)
    handle, sink = begin(manager)
    await asyncio.sleep(0.01)
    handle.abort()
    assert (await over(sink)).end == ("abort", "Aborted")
    assert manager.aborted == ["a" * 34]


async def test_an_abort_before_it_began_asks_nothing() -> None:
    manager = Manager(chunk([1.0]))
    handle, sink = begin(manager)
    handle.abort()
    assert (await over(sink)).end == ("abort", "")
    assert not manager.asked


async def test_the_second_text_of_a_pair_has_its_own_token_type() -> None:
    manager = Manager(chunk([1.0]))
    take_pairs(manager)
    await over(begin(manager, second_at=3)[1])
    await over(begin(manager)[1])
    made = [manager._create_tokenized_object(asked, "text") for asked in manager.asked]
    assert [each.token_type_ids for each in made] == [[0, 0, 0, 1], None]


async def test_where_sglang_cannot_be_told_a_pair_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OFF_VARIABLE, "pairs")
    manager = Manager(chunk([1.0]))
    take_pairs(manager)
    sink = await over(begin(manager, second_at=3)[1])
    assert sink.end is not None
    assert "second text of a pair" in sink.end[1]
    assert (await over(begin(manager)[1])).end == ("stop", "")
