"""Who says something else than most: nodes' versions, copies of a model.

Way:   node rules, file rules -> [outliers]
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")


def outliers(said: Iterable[tuple[T, str | None]]) -> tuple[str, list[T]]:
    """What most say, and those that say another thing. Who says nothing is neither; of equals the first counts."""
    pairs = [(who, what) for who, what in said if what]
    most = next((what for what, _ in Counter(what for _, what in pairs).most_common(1)), "")
    return most, [who for who, what in pairs if what != most]
