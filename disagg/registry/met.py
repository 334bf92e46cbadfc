"""Who has met whom: between which prefill and which decode incarnations a real transfer has succeeded.

In:    the prover adds a pair, the end of an incarnation takes away all of its pairs
Out:   routing asks which lives a decode has met; status shows it
Owns:  the relation, both ways round, so that a change costs no more than what it changes
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set

NOBODY: Set[str] = frozenset()
Pair = tuple[str, str]  # lives of a prefill and a decode


class Met:
    """Pairs (prefill life, decode life); an aggregated engine has met itself: (its life, its life).

    `add` and `remove` are O(1), `forget` O(pairs of that life), `met_with` and `in` O(1), `len` O(prefills).
    """

    __slots__ = ("_decodes", "_prefills")

    def __init__(self, pairs: Iterable[Pair] = ()) -> None:
        # By life; the values are dicts for their order, which two runs of one simulation have to share.
        self._decodes: dict[str, dict[str, None]] = {}  # of a prefill
        self._prefills: dict[str, dict[str, None]] = {}  # of a decode
        for prefill, decode in pairs:
            self.add(prefill, decode)

    def add(self, prefill: str, decode: str) -> bool:
        """Returns whether that was new."""
        decodes = self._decodes.setdefault(prefill, {})
        if decode in decodes:
            return False
        decodes[decode] = None
        self._prefills.setdefault(decode, {})[prefill] = None
        return True

    def remove(self, prefill: str, decode: str) -> bool:
        """Returns whether they had met."""
        if decode not in self._decodes.get(prefill, ()):
            return False
        _take_out(self._decodes, prefill, decode)
        _take_out(self._prefills, decode, prefill)
        return True

    def forget(self, life: str) -> list[Pair]:
        """The incarnation has ended; returns its pairs, which are gone."""
        pairs = [(life, decode) for decode in self._decodes.get(life, ())]
        pairs += [(prefill, life) for prefill in self._prefills.get(life, ()) if prefill != life]
        for pair in pairs:
            self.remove(*pair)
        return pairs

    def met_with(self, life: str) -> Set[str]:
        """The lives of the other role that it has met; of an aggregated engine that is proven, itself.

        A view: it changes with the relation.
        """
        found = self._prefills.get(life) or self._decodes.get(life)
        return found.keys() if found else NOBODY

    def by_prefill(self) -> Mapping[str, Iterable[str]]:
        """Prefill life -> the decode lives it has met."""
        return self._decodes

    def __contains__(self, pair: object) -> bool:
        return isinstance(pair, tuple) and pair[1] in self._decodes.get(pair[0], ())

    def __iter__(self) -> Iterator[Pair]:
        return ((prefill, decode) for prefill, decodes in self._decodes.items() for decode in decodes)

    def __len__(self) -> int:
        return sum(map(len, self._decodes.values()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Met) and self._decodes == other._decodes

    __hash__ = None  # type: ignore[assignment]  # it changes

    def __repr__(self) -> str:
        return f"Met({list(self)})"


def _take_out(of: dict[str, dict[str, None]], key: str, life: str) -> None:
    del of[key][life]
    if not of[key]:
        del of[key]
