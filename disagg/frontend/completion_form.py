"""What the answers of /v1/chat/completions and /v1/completions have in common.

Way:   the request -> Saying -> chat_form.py, text_form.py: [CompletionStream]
Owns:  all of a chunk that does not change over a stream, encoded once; which prompt's token ids were said
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from disagg.frontend.logprobs import TokenText, prompt_objects
from disagg.frontend.parts import ChoiceAnswer
from disagg.frontend.responses import WORDS, Kind, encode

DONE = b"data: [DONE]\n\n"
UNFINISHED = b',"logprobs":null,"finish_reason":null'


@dataclass(frozen=True, slots=True)
class Saying:
    """Whose answer it is, and what the client asked to be told beside the text."""

    id: str  # without its prefix
    created_s: int
    model: str
    token_text: TokenText | None = None  # where logprobs may come
    include_usage: bool = False
    usage_so_far: Callable[[], dict[str, Any]] | None = None  # each chunk holds it: `continuous_usage_stats`
    prompt_ids: Callable[[int], list[int]] | None = None  # of a choice, by its index: `return_token_ids`
    tells_prompt_logprobs: bool = False  # vLLM's `prompt_logprobs`

    def head(self, kind: Kind, *, is_chunk: bool) -> dict[str, Any]:
        prefix, whole, chunk = WORDS[kind]
        name = chunk if is_chunk else whole
        return {"id": prefix + self.id, "object": name, "created": self.created_s, "model": self.model}

    def prompt_logprobs(self, answer: ChoiceAnswer) -> dict[str, Any]:
        """A field of the answer or of its choice, where it was asked for."""
        if not self.tells_prompt_logprobs:
            return {}
        assert self.token_text is not None, "logprobs came, and nothing says their texts"
        return {"prompt_logprobs": prompt_objects(answer.prompt_logprobs, self.token_text)}

    def ended(self, answer: ChoiceAnswer) -> dict[str, Any]:
        """The last fields of a choice that has ended."""
        return {"finish_reason": answer.finish_reason, "matched_stop": answer.matched_stop}  # the last is SGLang's


class CompletionStream:
    """Chunks of one answer; what a choice says in them is its subclass's."""

    def __init__(self, kind: Kind, saying: Saying) -> None:
        self._saying = saying
        self._head = b"data: " + encode(saying.head(kind, is_chunk=True))[:-1] + b',"choices":'
        self._tail = (b',"usage":null}' if saying.include_usage else b"}") + b"\n\n"

    def ends(self, usage: dict[str, Any]) -> bytes:
        if not self._saying.include_usage:
            return DONE
        return self._head + b'[],"usage":' + encode(usage) + b"}\n\n" + DONE

    def fails(self, error: bytes) -> bytes:
        return b"data: " + error + b"\n\n"

    def _chunk(self, index: int, choice: bytes, beside: bytes = b"") -> bytes:
        """`choice`: its fields after the index; `beside`: the chunk's own fields after its choices."""
        return b'%b[{"index":%d,%b}]%b%b' % (self._head, index, choice, beside, self._end())

    def _end(self) -> bytes:
        usage = self._saying.usage_so_far
        return self._tail if usage is None else b',"usage":' + encode(usage()) + b"}\n\n"

    def _prompt(self, index: int) -> bytes:
        ids = self._saying.prompt_ids
        return b"" if ids is None else b',"prompt_token_ids":' + encode(ids(index))

    def _ids(self, token_ids: list[int]) -> bytes:
        return b"" if self._saying.prompt_ids is None else b',"token_ids":' + encode(token_ids)

    def _ended(self, answer: ChoiceAnswer) -> bytes:
        return b',"logprobs":null,' + encode(self._saying.ended(answer))[1:-1]
