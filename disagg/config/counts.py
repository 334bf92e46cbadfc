"""A count in a tree that may hold anything: what is no count is told elsewhere, and reads as the default here.

Way:   tree or arguments -> [count] -> rules, memory estimate, preflight
"""

from __future__ import annotations

from typing import Any


def count(value: Any, default: int = 1) -> int:
    """A whole number above 0, or the default."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else default
