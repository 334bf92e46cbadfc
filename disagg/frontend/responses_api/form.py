"""An answer of /v1/responses from its parts: the whole sequence of its events, or its Response object.

Way:   parts -> blocks.py -> [ResponsesStream, ResponseWhole] -> bytes
In:    one choice
Out:   what the `openai` clients expect: each event has its type inside, and a number one above the last one's
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from disagg.frontend.blocks import Block, Blocks, blocks_of
from disagg.frontend.events import event
from disagg.frontend.parts import ChoiceAnswer, Part, TokenLogprobs
from disagg.frontend.responses import encode
from disagg.frontend.responses_api.response import ResponseHead, status_of

# The words that OpenAI has for errors of a response; our own say more, and stand in the message.
_ERRORS = {"invalid_request_error": "invalid_prompt", "overloaded_error": "rate_limit_exceeded"}


class ResponsesStream:
    def __init__(self, head: ResponseHead) -> None:
        self._head = head
        self._items = _Items(head)
        self._blocks = Blocks(self._items)
        self._finish_reason = ""

    def begins(self, index: int) -> bytes:
        assert index == 0, "Responses has one choice"
        response = self._head.response("in_progress", [])
        return self._items.say("response.created", response=response) + self._items.say(
            "response.in_progress", response=response
        )

    def piece(self, _index: int, parts: Sequence[Part], _token_ids: list[int], logprobs: list[TokenLogprobs]) -> bytes:
        self._items.logprobs += logprobs
        return self._blocks.add(parts)

    def choice_ends(self, answer: ChoiceAnswer) -> bytes:
        self._finish_reason = answer.finish_reason
        self._items.is_cut = answer.finish_reason == "length"
        return self._blocks.end()

    def ends(self, usage: dict[str, Any]) -> bytes:
        response = self._head.ended(self._finish_reason, self._blocks.all, usage)
        return self._items.say(f"response.{response['status']}", response=response)

    def fails(self, error: bytes) -> bytes:
        said = msgspec.json.decode(error)["error"]
        output = [self._head.item(block, "incomplete") for block in self._blocks.all]
        told = {"code": _ERRORS.get(said["type"], "server_error"), "message": said["message"]}
        return self._items.say("response.failed", response=self._head.response("failed", output, error=told))


class _Items:
    """How Responses says the steps of blocks: events of an output item, of its part, of the part's text."""

    def __init__(self, head: ResponseHead) -> None:
        self._head, self._number = head, 0
        self.is_cut = False  # the answer reached its limit
        self.logprobs: list[TokenLogprobs] = []  # of tokens whose text is still to come

    def say(self, kind: str, **fields: Any) -> bytes:
        number, self._number = self._number, self._number + 1
        return event(kind, sequence_number=number, **fields)

    def opens(self, block: Block) -> bytes:
        item = self._head.item(block, "in_progress")
        if block.kind != "call":  # until their part is added
            item |= {"content": []} if block.kind == "text" else {"content": [], "summary": []}
        item.pop("encrypted_content", None)
        added = self.say("response.output_item.added", output_index=block.index, item=item)
        return added + self._part("added", block)

    def adds(self, block: Block, text: str) -> bytes:
        more: dict[str, Any] = {}
        if block.kind == "text":
            more = {"logprobs": self._take_logprobs(block)}
        return self.say(f"response.{self._text_name(block)}.delta", **self._place(block), delta=text, **more)

    def closes(self, block: Block) -> bytes:
        text: dict[str, Any] = {"text": block.text}
        if block.kind == "text":
            self._take_logprobs(block)
            text["logprobs"] = self._head.logprobs(block)
        elif block.kind == "call":
            text = {"arguments": block.text, "name": block.name}
        done = self.say(f"response.{self._text_name(block)}.done", **self._place(block), **text)
        item = self._head.item(block, status_of(block, self.is_cut))
        done += self._part("done", block)
        return done + self.say("response.output_item.done", output_index=block.index, item=item)

    def _part(self, step: str, block: Block) -> bytes:
        if block.kind == "call":
            return b""
        name = "reasoning_summary_part" if self._is_summary(block) else "content_part"
        part = self._head.text_part(block)
        if block.kind == "reasoning":
            part = {"type": "summary_text" if self._head.summarises else "reasoning_text", "text": block.text}
        return self.say(f"response.{name}.{step}", **self._place(block), part=part)

    def _text_name(self, block: Block) -> str:
        if block.kind == "reasoning":
            return "reasoning_summary_text" if self._head.summarises else "reasoning_text"
        return "output_text" if block.kind == "text" else "function_call_arguments"

    def _place(self, block: Block) -> dict[str, Any]:
        place = {"item_id": self._head.item_id(block), "output_index": block.index}
        if block.kind == "call":
            return place
        return {**place, "summary_index" if self._is_summary(block) else "content_index": 0}

    def _is_summary(self, block: Block) -> bool:
        return block.kind == "reasoning" and self._head.summarises

    def _take_logprobs(self, block: Block) -> msgspec.Raw:
        """Of all tokens since the last text: also those whose text was held back, or is none."""
        taken, self.logprobs = self._head.objects(self.logprobs), []
        block.told_logprobs += taken
        return msgspec.Raw(b"[" + b",".join(taken) + b"]")


class ResponseWhole:
    def __init__(self, head: ResponseHead) -> None:
        self._head = head

    def whole(self, choices: Sequence[ChoiceAnswer], usage: dict[str, Any]) -> bytes:
        (answer,) = choices
        return encode(self._head.ended(answer.finish_reason, blocks_of(answer), usage))
