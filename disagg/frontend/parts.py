"""What an answer says, once its text has been read by the model's parsers: parts, in the order in which they came.

Way:   text of a choice -> output parser -> [Part] -> the form of an API (StreamForm, WholeForm) -> the client's socket
Out:   parts and finished choices that know no API: chat, text, Responses and Messages say the same ones in their words
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from disagg.plane.messages import TokenLogprobs as TokenLogprobs


class Content(msgspec.Struct, frozen=True, gc=False):
    """Text for the user."""

    text: str


class Reasoning(msgspec.Struct, frozen=True, gc=False):
    """Text that the model thinks with."""

    text: str


class CallBegins(msgspec.Struct, frozen=True, gc=False):
    """A tool call. `index`: among the calls of its choice, from 0."""

    index: int
    id: str
    name: str


class CallArguments(msgspec.Struct, frozen=True, gc=False):
    """A fragment of a call's arguments, which are JSON once they are whole."""

    index: int
    text: str


Part = Content | Reasoning | CallBegins | CallArguments
EndReason = str  # stop, length, tool_calls: OpenAI's words


@dataclass(slots=True)
class Call:
    """A whole tool call; `arguments` is JSON."""

    id: str
    name: str
    arguments: str = ""


@dataclass(slots=True)
class ChoiceAnswer:
    """A whole choice: what its parts came to."""

    index: int
    text: str = ""
    reasoning: str = ""
    calls: list[Call] = field(default_factory=list)
    finish_reason: EndReason = "stop"
    matched_stop: str | int | None = None  # the stop string or token id that ended it
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    cached_tokens: int = 0  # of the prompt


class StreamForm(Protocol):
    """How one API says a stream. Bytes of whole server-sent events, no I/O; empty where there is nothing to say.

    Of each choice `begins`, then `piece` any number of times, then `choice_ends`; choices interleave. At last `ends`,
    once. A request that fails ends with `fails` instead.
    """

    def begins(self, index: int) -> bytes: ...

    def piece(self, index: int, parts: Sequence[Part], token_ids: list[int], logprobs: list[TokenLogprobs]) -> bytes:
        """`logprobs` is empty where the client asked for none."""

    def choice_ends(self, answer: ChoiceAnswer) -> bytes:
        """`answer` is the whole choice, all its pieces included."""

    def ends(self, usage: dict[str, Any]) -> bytes:
        """`usage`: OpenAI's object, of all choices together."""

    def fails(self, error: bytes) -> bytes:
        """`error`: OpenAI's error object as JSON."""


class WholeForm(Protocol):
    """How one API says an answer that is not streamed."""

    def whole(self, choices: Sequence[ChoiceAnswer], usage: dict[str, Any]) -> bytes: ...
