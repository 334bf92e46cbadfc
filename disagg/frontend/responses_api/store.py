"""Conversations by the id of their last response, for `previous_response_id`. In memory, and bounded.

Way:   a response that ended -> [ResponseStore.put]; a later request -> [ResponseStore.find]
In:    chat messages without instructions, which OpenAI does not carry over; the owner, a digest of a key
Owns:  at most `entries_max` conversations and `bytes_max` of them: the one longest unused goes first. One that would
       take more than a sixteenth of the bytes is not kept: it would push out too many others
Fails: `not_kept` for an id that is not kept, and for another key's alike
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import msgspec

from disagg.errors import BadRequest
from disagg.frontend.chat_form import message_of
from disagg.frontend.parts import ChoiceAnswer
from disagg.frontend.responses_api.items import object_of

ENTRIES_MAX = 10_000
BYTES_MAX = 64 << 20
_ENTRY_BYTES = 256  # of the key and the table
_SHARE = 16  # one entry has at most this part of the bytes

Messages = list[dict[str, Any]]


class ResponseStore:
    def __init__(self, entries_max: int = ENTRIES_MAX, bytes_max: int = BYTES_MAX) -> None:
        self._entries_max, self._bytes_max = entries_max, bytes_max
        self._entries: OrderedDict[tuple[bytes, str], bytes] = OrderedDict()
        self.held_bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, owner: bytes, response_id: str, messages: Messages) -> None:
        """Kept as bytes: what they cost is known, and the garbage collector does not look through them."""
        kept = msgspec.msgpack.encode(messages)
        if (owner, response_id) in self._entries:
            self._drop((owner, response_id))
        if _ENTRY_BYTES + len(kept) > self._bytes_max // _SHARE:
            return
        self._entries[owner, response_id] = kept
        self.held_bytes += _ENTRY_BYTES + len(kept)
        while self.held_bytes > self._bytes_max or len(self._entries) > self._entries_max:
            self._drop(next(iter(self._entries)))

    def find(self, owner: bytes, response_id: str) -> Messages | None:
        kept = self._entries.get((owner, response_id))
        if kept is None:
            return None
        self._entries.move_to_end((owner, response_id))
        found: Messages = msgspec.msgpack.decode(kept)
        return found

    def _drop(self, key: tuple[bytes, str]) -> None:
        self.held_bytes -= _ENTRY_BYTES + len(self._entries.pop(key))


def not_kept(response_id: str) -> BadRequest:
    what = f"there is no response '{response_id[:100]}' here: it was not stored, or is no longer kept; "
    return BadRequest("previous_response_id", "previous_response_not_found", what + "send the conversation as 'input'")


def conversation(history: Messages, answer: ChoiceAnswer) -> Messages:
    """What is kept of a response: all that was said before it, and its own words. Calls are mended as clients' are."""
    message = message_of(answer)
    del message["refusal"]
    for call in message.get("tool_calls") or []:
        call["function"]["arguments"] = object_of(call["function"]["arguments"])
    return [*history, {**message, "content": answer.text}]
