"""The Response object, and the items of its output.

Way:   what a request asked, the blocks of an answer -> [ResponseHead] -> form.py
Out:   what the `openai` clients expect, field for field. The ids of a response and of its items come from the request's
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from disagg.frontend.blocks import Block
from disagg.frontend.logprobs import TokenText, token_objects
from disagg.frontend.parts import TokenLogprobs
from disagg.frontend.responses_api.reasoning_state import sealed

_PREFIXES = {"reasoning": "rs", "text": "msg", "call": "fc"}


@dataclass(frozen=True, slots=True)
class ResponseHead:
    request_id: str
    created_s: int
    model: str
    echo: dict[str, Any]  # the request's fields, as the answer repeats them
    summarises: bool = False  # reasoning stands in a summary, too
    seals: bool = False  # reasoning items hold it as `encrypted_content`, too
    token_text: TokenText | None = None  # where logprobs may come

    @property
    def id(self) -> str:
        return f"resp_{self.request_id}"

    def item_id(self, block: Block) -> str:
        return f"{_PREFIXES[block.kind]}_{self.request_id}_{block.index}"

    def response(self, status: str, output: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        begin = {"id": self.id, "object": "response", "created_at": self.created_s, "status": status}
        end = {"error": None, "incomplete_details": None, "usage": None, **more}
        return {**begin, **self.echo, "model": self.model, "output": output, **end}

    def ended(self, finish_reason: str, blocks: list[Block], usage: dict[str, Any]) -> dict[str, Any]:
        is_cut = finish_reason == "length"
        output = [self.item(block, status_of(block, is_cut)) for block in blocks]
        details = {"reason": "max_output_tokens"} if is_cut else None
        status = "incomplete" if is_cut else "completed"
        return self.response(status, output, incomplete_details=details, usage=_usage(usage))

    def item(self, block: Block, status: str) -> dict[str, Any]:
        begin = {"id": self.item_id(block), "status": status}
        match block.kind:
            case "reasoning":
                return {**begin, "type": "reasoning", **self._reasoning(block.text)}
            case "text":
                content = [self.text_part(block)]
                return {**begin, "type": "message", "role": "assistant", "content": content}
            case "call":
                call = {"call_id": block.call_id, "name": block.name, "arguments": block.text}
                return {**begin, "type": "function_call", **call}

    def text_part(self, block: Block) -> dict[str, Any]:
        logprobs = self.logprobs(block)
        return {"type": "output_text", "text": block.text, "annotations": [], "logprobs": logprobs}

    def logprobs(self, block: Block) -> msgspec.Raw:
        """As JSON: the last events of a stream say all of them four times, and none is made anew for it."""
        return msgspec.Raw(b"[" + b",".join(block.told_logprobs or self.objects(block.logprobs)) + b"]")

    def objects(self, logprobs: Sequence[TokenLogprobs]) -> list[bytes]:
        if not logprobs:
            return []
        assert self.token_text is not None, "logprobs came, and nothing says their texts"
        return list(token_objects(logprobs, self.token_text))

    def _reasoning(self, text: str) -> dict[str, Any]:
        summary = [{"type": "summary_text", "text": text}] if self.summarises else []
        said = {"summary": summary, "content": [{"type": "reasoning_text", "text": text}]}
        return {**said, "encrypted_content": sealed(text)} if self.seals else said


def status_of(block: Block, is_cut: bool) -> str:
    """The last item of an answer that reached its limit is incomplete."""
    return "incomplete" if is_cut and block.is_last else "completed"


def _usage(usage: dict[str, Any]) -> dict[str, Any]:
    """From chat's words. SGLang counts reasoning beside OpenAI's details."""
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    details = usage.get("completion_tokens_details") or {}
    reasoning = details.get("reasoning_tokens") or usage.get("reasoning_tokens") or 0
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": cached},
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": reasoning},
        "total_tokens": usage["total_tokens"],
    }
