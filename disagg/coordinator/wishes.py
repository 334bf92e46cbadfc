"""What a client asks of admission and routing, beside what it asks of the model."""

from __future__ import annotations

import msgspec

PRIORITY_MAX = 100  # and its negative


class Wishes(msgspec.Struct, frozen=True, gc=False):
    """`session`: requests that go on with one another; `priority`: higher goes first, 0 is usual; `ttft_s`, `tpot_s`:
    the longest first token, and mean gap between tokens, that are of use to the client, 0: any; `output_tokens`: what
    it expects of the answer, 0: it does not say."""

    session: str = ""
    priority: int = 0
    ttft_s: float = 0.0
    tpot_s: float = 0.0
    output_tokens: int = 0


NONE = Wishes()
