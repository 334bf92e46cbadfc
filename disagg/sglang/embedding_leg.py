"""A leg that ends with a vector, inside an SGLang engine that embeds.

Way:   SGLangEngine.submit -> [EmbeddingLeg] -> TokenizerManager -> scheduler rank; back comes one chunk with the vector
In:    token ids. Engine.async_encode takes text alone, so this speaks to the TokenizerManager
Out:   `on_embedding`, then `on_end("stop", …)`
Fails: as SGLangLeg, whose aborts and ends it has. A vector that is not all numbers is NOT_A_NUMBER: JSON has no word
       for one, and another engine would make the same
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import AsyncIterator
from typing import Any

from disagg.host_spec import is_on
from disagg.plane.messages import NOT_A_NUMBER, pack_floats
from disagg.sglang.input_ids import input_ids
from disagg.sglang.leg import SGLangLeg

PART = "pairs"  # of touched.py
SECOND_AT = "disagg_second_at"  # of an EmbeddingReqInput; SGLang would lose it in a field of its own


class EmbeddingLeg(SGLangLeg):
    async def _stream(self, engine: Any) -> Any:
        from sglang.srt.managers.io_struct import EmbeddingReqInput

        if self.leg.second_at and not is_on(PART):
            raise ValueError("this SGLang cannot be told where the second text of a pair begins")
        more: dict[str, Any] = {"lora_path": self.leg.adapter} if self.leg.adapter else {}
        if self.leg.trace:
            more["external_trace_header"] = {"traceparent": self.leg.trace}
        asked = EmbeddingReqInput(input_ids=input_ids(self.leg.prompt_ids), rid=self.leg.id, **more)
        setattr(asked, SECOND_AT, self.leg.second_at)
        return self._chunks(engine.tokenizer_manager.generate_request(asked))

    async def _chunks(self, stream: Any) -> AsyncIterator[dict[str, Any]]:
        async with contextlib.aclosing(stream):
            async for chunk in stream:
                numbers = chunk.get("embedding")
                finish = chunk["meta_info"].get("finish_reason")
                if finish is not None and finish["type"] == "abort":
                    yield chunk
                    continue
                numbers = numbers if isinstance(numbers, list) else [float(numbers)]  # one score comes bare
                if not all(map(math.isfinite, numbers)):
                    raise ValueError(f"the vector holds a value that is {NOT_A_NUMBER}")
                self._sink.on_embedding(pack_floats(numbers))
                yield {"meta_info": {"finish_reason": {"type": "stop"}}}


def take_pairs(manager: Any) -> None:
    """From now on a pair's second text has token type 1, as its tokenizer says. SGLang keeps token types only of what
    it tokenises itself."""
    if not is_on(PART):
        return
    real = manager._create_tokenized_object

    def create(obj: Any, *args: Any, **kwargs: Any) -> Any:
        made = real(obj, *args, **kwargs)
        second_at = getattr(obj, SECOND_AT, 0)
        if second_at:
            made.token_type_ids = [0] * second_at + [1] * (len(made.input_ids) - second_at)
        return made

    manager._create_tokenized_object = create
