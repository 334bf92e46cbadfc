"""An answer of /v1/messages from its parts: Anthropic's stream events, or its Message.

Way:   parts -> blocks.py -> [MessagesStream, MessageWhole] -> bytes
In:    one choice; how many tokens the prompt has, known before the stream begins
Out:   what the `anthropic` clients expect. `input_tokens` of message_start counts the whole prompt; in the last
       message_delta, and in a Message, what was read from the cache is counted apart, as Anthropic does
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from disagg.frontend.blocks import Block, Blocks, blocks_of
from disagg.frontend.events import event
from disagg.frontend.messages_api.errors import error_event
from disagg.frontend.parts import ChoiceAnswer, Part, TokenLogprobs
from disagg.frontend.responses import encode

_STOP_REASONS = {"length": "max_tokens", "tool_calls": "tool_use"}
_DELTAS = {  # kind of a block: its delta's type, and the field that holds the text
    "reasoning": ("thinking_delta", "thinking"),
    "text": ("text_delta", "text"),
    "call": ("input_json_delta", "partial_json"),
}


class MessagesStream:
    def __init__(self, request_id: str, model: str, input_tokens: int) -> None:
        self._request_id, self._model, self._input_tokens = request_id, model, input_tokens
        self._blocks = Blocks(_Events())
        self._stop: dict[str, Any] = {}

    def begins(self, index: int) -> bytes:
        assert index == 0, "Messages has one choice"
        usage = _usage(self._input_tokens, 0, 0)
        message = _message(self._request_id, self._model, [], {"stop_reason": None, "stop_sequence": None}, usage)
        return event("message_start", message=message) + event("ping")

    def piece(self, _index: int, parts: Sequence[Part], _token_ids: list[int], _logprobs: list[TokenLogprobs]) -> bytes:
        return self._blocks.add(parts)

    def choice_ends(self, answer: ChoiceAnswer) -> bytes:
        self._stop = _stop(answer)
        return self._blocks.end()

    def ends(self, usage: dict[str, Any]) -> bytes:
        return event("message_delta", delta=self._stop, usage=_usage_of(usage)) + event("message_stop")

    def fails(self, error: bytes) -> bytes:
        return error_event(error)


class _Events:
    """How Messages says the steps of blocks."""

    def opens(self, block: Block) -> bytes:
        content = {**_content(block), **({"input": {}} if block.kind == "call" else {})}
        return event("content_block_start", index=block.index, content_block=content)

    def adds(self, block: Block, text: str) -> bytes:
        kind, field = _DELTAS[block.kind]
        return event("content_block_delta", index=block.index, delta={"type": kind, field: text})

    def closes(self, block: Block) -> bytes:
        """Nothing signs thinking here: an empty signature says so, and clients send it back."""
        signature = b""
        if block.kind == "reasoning":
            delta = {"type": "signature_delta", "signature": ""}
            signature = event("content_block_delta", index=block.index, delta=delta)
        return signature + event("content_block_stop", index=block.index)


class MessageWhole:
    def __init__(self, request_id: str, model: str) -> None:
        self._request_id, self._model = request_id, model

    def whole(self, choices: Sequence[ChoiceAnswer], usage: dict[str, Any]) -> bytes:
        (answer,) = choices
        content = [_content(block) for block in blocks_of(answer)]
        return encode(_message(self._request_id, self._model, content, _stop(answer), _usage_of(usage)))


def tokens_counted(input_tokens: int) -> bytes:
    """The answer of /v1/messages/count_tokens."""
    return encode({"input_tokens": input_tokens})


def _message(
    request_id: str, model: str, content: list[dict[str, Any]], stop: dict[str, Any], usage: dict[str, Any]
) -> dict[str, Any]:
    message = {"id": f"msg_{request_id}", "type": "message", "role": "assistant", "model": model, "content": content}
    return {**message, **stop, "usage": usage}


def _content(block: Block) -> dict[str, Any]:
    match block.kind:
        case "reasoning":
            return {"type": "thinking", "thinking": block.text, "signature": ""}
        case "text":
            return {"type": "text", "text": block.text}
        case "call":
            return {"type": "tool_use", "id": block.call_id, "name": block.name, "input": _input(block.text)}


def _input(arguments: str) -> dict[str, Any]:
    """Empty for arguments that broke off (`stop_reason` says so): a Message cannot hold half an object."""
    try:
        found = msgspec.json.decode(arguments)
    except (msgspec.DecodeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _stop(answer: ChoiceAnswer) -> dict[str, Any]:
    if answer.finish_reason == "stop" and isinstance(answer.matched_stop, str):
        return {"stop_reason": "stop_sequence", "stop_sequence": answer.matched_stop}
    return {"stop_reason": _STOP_REASONS.get(answer.finish_reason, "end_turn"), "stop_sequence": None}


def _usage_of(usage: dict[str, Any]) -> dict[str, Any]:
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return _usage(usage["prompt_tokens"] - cached, cached, usage["completion_tokens"])


def _usage(input_tokens: int, cached_tokens: int, output_tokens: int) -> dict[str, Any]:
    return {
        "input_tokens": input_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached_tokens,
        "output_tokens": output_tokens,
    }
