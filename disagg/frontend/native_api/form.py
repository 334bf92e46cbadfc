"""SGLang's words for an answer: its text, its ids, and `meta_info`.

Way:   parts of each choice -> [NativeStream, NativeWhole] -> bytes
Out:   as SGLang's own server: each event of a stream holds the whole text so far, so that a long stream costs the
       square of its length. An answer of one choice is an object, of several a list
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from disagg.frontend.logprobs import TokenText
from disagg.frontend.parts import ChoiceAnswer, Content, Part, TokenLogprobs
from disagg.frontend.responses import encode

DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class NativeSaying:
    """`ids`: of each choice's request. `token_text`: where the client wants texts beside logprobs."""

    ids: Sequence[str]
    prompts: Sequence[list[int]]  # of each choice
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

    def logprobs(self, where: str, given: Sequence[TokenLogprobs]) -> dict[str, Any]:
        """`where`: input or output."""
        if not given:
            return {}
        said: dict[str, Any] = {f"{where}_token_logprobs": [self._token(e.logprob, e.token_id) for e in given]}
        if any(each.top for each in given):
            tops = [[self._token(logprob, token_id) for token_id, logprob in each.top] or None for each in given]
            said[f"{where}_top_logprobs"] = tops
        if any(each.chosen for each in given):
            rows = [[self._token(logprob, token_id) for token_id, logprob in each.chosen] or None for each in given]
            said[f"{where}_token_ids_logprobs"] = rows
        return said

    def _token(self, logprob: float | None, token_id: int) -> tuple[float | None, int, str | None]:
        return logprob, token_id, self.token_text(token_id)[0] if self.token_text is not None else None


@dataclass(slots=True)
class _SoFar:
    texts: list[str] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)


class NativeStream:
    def __init__(self, saying: NativeSaying) -> None:
        self._saying = saying
        self._so_far = [_SoFar() for _ in saying.ids]

    def begins(self, index: int) -> bytes:
        return b""

    def piece(self, index: int, parts: Sequence[Part], token_ids: list[int], logprobs: list[TokenLogprobs]) -> bytes:
        so_far = self._so_far[index]
        so_far.texts = ["".join([*so_far.texts, *(part.text for part in parts if isinstance(part, Content))])]
        so_far.ids += token_ids
        so_far.logprobs += logprobs
        return self._event(index, so_far.texts[0], so_far.ids, self._saying.logprobs("output", so_far.logprobs))

    def choice_ends(self, answer: ChoiceAnswer) -> bytes:
        return self._event(answer.index, answer.text, answer.token_ids, _meta_of(answer, self._saying))

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
        meta = self._saying.meta(answer.index, len(answer.token_ids), _meta_of(answer, self._saying))
        return {"text": answer.text, "output_ids": answer.token_ids, "meta_info": meta}


def _meta_of(answer: ChoiceAnswer, saying: NativeSaying) -> dict[str, Any]:
    return (
        saying.ended(answer)
        | saying.logprobs("input", answer.prompt_logprobs)
        | saying.logprobs("output", answer.logprobs)
    )
