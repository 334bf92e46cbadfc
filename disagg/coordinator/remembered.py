"""What is kept of a request that has ended.

Way:   Request, at its end -> [Remembered] -> its timeline, the page's lists, its trace
"""

from __future__ import annotations

from typing import Any

import msgspec

from disagg.coordinator.facts import Facts
from disagg.coordinator.phases import Phase


class Remembered(msgspec.Struct, frozen=True, gc=False):
    """What is kept of an ended request, for its timeline: all but its tokens, which would take gigabytes.

    Thousands are kept. The garbage collector skips them: it would stop every stream while it looked through them.
    """

    id: str
    phase: Phase
    received_at_s: float
    timeline: dict[str, float]
    facts: Facts
    tries: int
    prompt_tokens: int
    output_tokens: int
    owner: bytes

    @property
    def usage(self) -> dict[str, Any]:
        return usage_of(self.prompt_tokens, self.output_tokens, self.facts)


def usage_of(prompt_tokens: int, output_tokens: int, facts: Facts) -> dict[str, Any]:
    """OpenAI's usage object."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": output_tokens,
        "total_tokens": prompt_tokens + output_tokens,
        "prompt_tokens_details": {"cached_tokens": facts.cached_tokens or 0},
    }
