"""What an engine does for a request; one word for it in every room."""

from __future__ import annotations

from enum import StrEnum


class Role(StrEnum):
    PREFILL = "prefill"
    DECODE = "decode"
    AGGREGATED = "aggregated"
    EMBEDDING = "embedding"
