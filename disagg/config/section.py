"""What all sections of the YAML have in common.

Way:   schema, frontend, sampling_defaults -> [Section]
Fails: pydantic's ValidationError
"""

from __future__ import annotations

from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict


class Remedy(NamedTuple):
    """Beside a field's type: the advice for a value of another type."""

    text: str


class Section(BaseModel):
    # strict: `port: "8000"` is a mistake to point at, not one to guess around
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def listed(value: Any) -> Any:
    if not isinstance(value, list | tuple):
        raise ValueError("must be a list; begin each entry with `- `, or write it as [a, b]")
    return tuple(value)
