"""SGLang's words for an answer: its text, its ids, and `meta_info`.

Way:   parts of each choice -> [NativeStream, NativeWhole] -> bytes
Out:   as SGLang's own server: each event of a stream holds the whole text so far. So that a long answer does not cost
       the square of its length, one that is beyond EACH_BYTES grows by a 256th of itself from event to event. An answer
       of one choice is an object, of several a list
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from disagg.frontend.logprobs import TokenText
from disagg.frontend.parts import ChoiceAnswer, Content, Part, TokenLogprobs
from disagg.frontend.responses import encode

EACH_BYTES = 16 << 10  # an answer below it has an event for each piece
STEPS = 256  # beyond: events until it is twice as long, about
LOGPROB_BYTES = 24  # of one number with its id, in an event
ID_BYTES = 6

DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class NativeSaying:
    """`ids`: of each choice's request. `token_text`: where the client wants texts beside logprobs."""

    ids: Sequence[str]
    prompts: Sequence[Sequence[int]]  # of each choice
    received_at_s: float  # monotonic
    token_text: TokenText | None = None

    def meta(self, index: int, output_tokens: int, more: dict[str, Any]) -> dict[str, Any]:
        return {
            "id": self.ids[index],
            "finish_reason": None,
            "prompt_tokens": len(self.prompts[index]),
            "completion_tokens": output_tokens,
            "weight_version": "default",
            "e2e_latency": round(time.monotonic() - self.received_at_s, 6),
            **more,
        }

    def ended(self, answer: ChoiceAnswer) -> dict[str, Any]:
        said: dict[str, Any] = {"type": answer.finish_reason, "length": len(answer.token_ids)}
        if answer.finish_reason == "stop":
            said = {"type": "stop", "matched": answer.matched_stop}
        return {"finish_reason": said, "cached_tokens": answer.cached_tokens}

    def logprobs(self, given: Sequence[TokenLogprobs], prompts: Sequence[TokenLogprobs] = ()) -> dict[str, Any]:
        """`given`: of the answer's tokens, none where the client asks for none. What is said of the prompt is then
        there, too, if empty: SGLang's clients read it without asking."""
        return self.rows(Rows(self).add(given), prompts)

    def rows(self, rows: Rows, prompts: Sequence[TokenLogprobs]) -> dict[str, Any]:
        """The same of an answer's rows."""
        of_prompt = Rows(self).add(prompts)
        if not rows:
            return of_prompt.told("input") if prompts else {}
        return of_prompt.told("input", beside=rows) | rows.told("output", beside=rows) | rows.length()

    def token(self, logprob: float | None, token_id: int) -> tuple[float | None, int, str | None]:
        return logprob, token_id, self.token_text(token_id)[0] if self.token_text is not None else None


class Rows:
    """Logprobs as JSON, a row a token: what has been written is not written anew for the next event."""

    def __init__(self, saying: NativeSaying) -> None:
        self._saying = saying
        self._rows: dict[str, bytearray] = {name: bytearray() for name in ("token", "top", "token_ids")}
        self._is_told = {"token": True, "top": False, "token_ids": False}
        self._count = 0

    def add(self, given: Sequence[TokenLogprobs]) -> Rows:
        token = self._saying.token
        for each in given:
            self._add("token", token(each.logprob, each.token_id))
            self._count += 1
            self._add("top", [token(logprob, token_id) for token_id, logprob in each.top] or None)
            self._add("token_ids", [token(logprob, token_id) for token_id, logprob in each.chosen] or None)
        return self

    def __bool__(self) -> bool:
        return bool(self._count)

    def told(self, where: str, beside: Rows | None = None) -> dict[str, Any]:
        """`where`: input or output. Where one of these rows, or of those beside, has others beside it, there is a list
        of those, too."""
        return {
            f"{where}_{name}_logprobs": msgspec.Raw(b"[" + rows + b"]")
            for name, rows in self._rows.items()
            if self._is_told[name] or (beside is not None and beside._is_told[name])
        }

    def so_far(self) -> dict[str, Any]:
        """Of a stream's answer: its prompt's come with its end."""
        if not self:
            return {}
        return Rows(self._saying).told("input", beside=self) | self.told("output") | self.length()

    def length(self) -> dict[str, Any]:
        return {"output_token_logprobs_length": self._count}

    def _add(self, name: str, row: Any) -> None:
        rows = self._rows[name]
        if rows:
            rows += b","
        rows += encode(row)
        self._is_told[name] = self._is_told[name] or row is not None


@dataclass(slots=True)
class _SoFar:
    rows: Rows
    texts: list[str] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    size_bytes: int = 0  # about, of an event that says all of it
    told_bytes: int = 0  # of the last event

    def add(self, texts: list[str], token_ids: list[int], logprobs: list[TokenLogprobs]) -> None:
        self.texts += texts
        self.ids += token_ids
        self.rows.add(logprobs)
        numbers = sum(1 + len(each.top) + len(each.chosen) for each in logprobs)
        self.size_bytes += sum(map(len, texts)) + ID_BYTES * len(token_ids) + LOGPROB_BYTES * numbers

    def is_due(self) -> bool:
        """Whether the next event is worth its bytes."""
        if self.size_bytes > EACH_BYTES and self.size_bytes - self.told_bytes < self.size_bytes // STEPS:
            return False
        self.told_bytes = self.size_bytes
        return True

    def text(self) -> str:
        self.texts = ["".join(self.texts)]
        return self.texts[0]


class NativeStream:
    def __init__(self, saying: NativeSaying) -> None:
        self._saying = saying
        self._so_far = [_SoFar(Rows(saying)) for _ in saying.ids]

    def begins(self, index: int) -> bytes:
        return b""

    def piece(self, index: int, parts: Sequence[Part], token_ids: list[int], logprobs: list[TokenLogprobs]) -> bytes:
        so_far = self._so_far[index]
        so_far.add([part.text for part in parts if isinstance(part, Content)], token_ids, logprobs)
        if not so_far.is_due():
            return b""
        return self._event(index, so_far.text(), so_far.ids, so_far.rows.so_far())

    def choice_ends(self, answer: ChoiceAnswer) -> bytes:
        rows = self._so_far[answer.index].rows
        more = self._saying.ended(answer) | self._saying.rows(rows, answer.prompt_logprobs)
        return self._event(answer.index, answer.text, answer.token_ids, more)

    def ends(self, usage: dict[str, Any]) -> bytes:
        return DONE

    def fails(self, error: bytes) -> bytes:
        return b"data: " + error + b"\n\n"

    def _event(self, index: int, text: str, ids: list[int], more: dict[str, Any]) -> bytes:
        said = {"text": text, "output_ids": ids, "meta_info": self._saying.meta(index, len(ids), more), "index": index}
        return b"data: " + encode(said) + b"\n\n"


class NativeWhole:
    """`is_list`: the client sent a list of prompts, or wants several answers."""

    def __init__(self, saying: NativeSaying, *, is_list: bool) -> None:
        self._saying, self._is_list = saying, is_list

    def whole(self, choices: Sequence[ChoiceAnswer], usage: dict[str, Any]) -> bytes:
        said = [self._choice(each) for each in choices]
        return encode(said if self._is_list else said[0])

    def _choice(self, answer: ChoiceAnswer) -> dict[str, Any]:
        saying = self._saying
        more = saying.ended(answer) | saying.logprobs(answer.logprobs, answer.prompt_logprobs)
        meta = saying.meta(answer.index, len(answer.token_ids), more)
        return {"text": answer.text, "output_ids": answer.token_ids, "meta_info": meta}
