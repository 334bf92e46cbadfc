"""Sampling values for requests that do not name their own.

Way:   `model.sampling_defaults` of the YAML -> [SamplingDefaults] -> frontend, over generation_config.json
Out:   the same values that a request may name (disagg/sampling.py has the table; a test compares both)
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from disagg.config.section import Section


class SamplingDefaults(Section):
    """What a request gets that does not say it; over the model's own generation_config.json."""

    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    """0: always the likeliest token."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """The likeliest tokens that together have this probability."""
    top_k: Annotated[int, Field(ge=-1, le=1 << 30)] | None = None
    """So many of the likeliest tokens; -1: all."""
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    """Tokens that are at least so likely, compared with the likeliest."""
    repetition_penalty: Annotated[float, Field(ge=0.01, le=2)] | None = None
    """Above 1: what was said already becomes less likely."""
