"""A prompt's ids are nowhere an object each, from the reader's answer to the engines: of 100,000 that would hold up the
loops of a frontend and of both hosts for milliseconds."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # tests share bench.py; they are not a package
sys.path.insert(1, str(Path(__file__).parents[1] / "frontend"))  # and a model's folder

from bench import bench, request
from scripted import CONTEXT, MODEL, make_model_folder

from disagg.frontend.reader import answer, codec_for
from disagg.frontend.readers import Order, answered
from disagg.frontend.request_body import CompletionRequest
from disagg.process.stub import StubEngine
from disagg.token_ids import packed
from disagg.tokenizer.overrides import Overrides

IDS = range(1_000, 7_000)  # no two are the same object by chance
OBJECTS = len(IDS) // 4  # of all the rest


async def test_from_the_request_to_both_engines() -> None:
    prefill, decode = StubEngine(), StubEngine()
    async with bench(prefill=prefill, decode=decode) as b:
        await b.answer(request())  # what is made once
        asked = request()
        asked.prompt_ids = packed(IDS)
        before = sys.getallocatedblocks()
        await b.answer(asked)
        await b.settle()
        assert sys.getallocatedblocks() - before < OBJECTS
        for engine in (prefill, decode):  # they keep their legs
            assert list(engine.legs[-1].prompt_ids) == list(IDS)


async def test_also_where_the_answer_so_far_has_become_a_part_of_it() -> None:
    prefill, decode = StubEngine(), StubEngine()
    async with bench(prefill=prefill, decode=decode) as b:
        asked = request()
        asked.prompt_ids, asked.emitted_ids = packed(IDS), [7, 8, 9]
        await b.answer(asked)
        await b.settle()
        assert list(decode.legs[-1].prompt_ids) == [*IDS, 7, 8, 9]


@pytest.mark.parametrize("body", [b'"prompt":"%b"' % (b"a" * (CONTEXT - 8)), b'"prompt":[[258,257],[0]]'])
def test_from_a_reader_to_the_request(tmp_path: Path, body: bytes) -> None:
    order = Order(str(make_model_folder(tmp_path)), MODEL, 10.0, Overrides(), refuses_unknown=True)
    said = answer(b'{"model":"%b","max_tokens":1,%b}' % (MODEL.encode(), body), "text", order, codec_for(order))
    asked = answered(said)
    assert isinstance(asked, CompletionRequest)
    assert {type(ids) for ids in asked.prompts} == {type(packed(()))}
    wanted = [[258, 257], [0]] if b"[" in body else [[64] * (CONTEXT - 8)]
    assert [ids.tolist() for ids in asked.prompts] == wanted
