"""One answer to one exchange, and all that it takes: what was asked, its requests, who reads their text.

Way:   CompletionRequest -> generation.py -> [Answering] -> forms.py, choices.py
Owns:  the usage of all choices together
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from disagg.coordinator.request import Request
from disagg.frontend.choices import PLAIN, Parser
from disagg.frontend.output_parser import OutputParser
from disagg.frontend.parsing import Asking
from disagg.frontend.request_body import CompletionRequest
from disagg.frontend.tokenization import Tokenization


@dataclass(slots=True)
class Answering:
    """`received_at_s`: monotonic; `created_s`: wall clock. `asking`: None where nothing reads the text."""

    asked: CompletionRequest
    requests: Sequence[Request]
    tokenization: Tokenization
    model: str
    owner: bytes
    received_at_s: float
    created_s: int
    asking: Asking | None = None
    reasoning_tokens: dict[int, int] = field(default_factory=dict)  # of choices that have ended, by their index

    @property
    def id(self) -> str:
        return self.requests[0].id

    @property
    def is_plain(self) -> bool:
        """Nothing but one text is told, and nothing reads it."""
        return self.asking is None and self.asked.is_plain

    def prompt_of(self, index: int) -> list[int]:
        """Of a choice."""
        return self.asked.prompts[index // self.asked.n].tolist()

    def echo(self, index: int) -> str | None:
        """Of a request: its prompt, where the answer begins with that."""
        return self.asked.prompt_texts[index // self.asked.best_of] if self.asked.echo else None

    @property
    def is_mute(self) -> bool:
        """The client wants no token of the answer, but its prompt alone."""
        return self.asked.max_tokens == 0

    def parser(self) -> Parser:
        """For one choice. Raises ParserFailed."""
        return PLAIN if self.asking is None else OutputParser(self.asking.plan, is_stream=self.asked.stream)

    def note_end(self, index: int) -> None:
        """Called when a choice has ended, before its usage is told."""
        if self.asking is not None and self.asking.require_reasoning:
            counter = self.tokenization.parsing.reasoning_tokens(self.asking)
            counter.push(self.requests[index].emitted_ids)
            self.reasoning_tokens[index] = counter.count

    def usage(self) -> dict[str, Any]:
        """OpenAI's usage object: each prompt counts once, each token that was made counts."""
        firsts = self.requests[:: self.asked.best_of]
        prompt_tokens = sum(len(request.prompt_ids) for request in firsts)
        output_tokens = 0 if self.is_mute else sum(len(request.emitted_ids) for request in self.requests)
        cached_tokens = sum(request.facts.cached_tokens or 0 for request in firsts)
        usage: dict[str, Any] = {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": output_tokens,
            "total_tokens": prompt_tokens + output_tokens,
            "prompt_tokens_details": {"cached_tokens": cached_tokens},
        }
        if self.reasoning_tokens:
            usage["completion_tokens_details"] = {"reasoning_tokens": sum(self.reasoning_tokens.values())}
        return usage
