"""Of many cases that take long, some each day: continuous integration has an hour for all tests.

With DISAGG_TESTS=all each case runs.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def todays(cases: Sequence[T], count: int) -> list[T]:
    """In their order; others each day."""
    if os.environ.get("DISAGG_TESTS") == "all":
        return list(cases)
    chosen = random.Random(time.strftime("%F")).sample(range(len(cases)), min(count, len(cases)))
    return [cases[each] for each in sorted(chosen)]
