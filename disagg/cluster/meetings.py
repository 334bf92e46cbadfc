"""Which two engines meet next: those that want to, when both are free. Awaits nothing.

Way:   prover -> [Meetings.next] -> a probe of that pair -> [Meetings.free]
In:    pairs that are wanted; engines that somebody else needs for himself; out: a pair, both of it taken
Owns:  who is taken. No engine is in two probes at once: they would slow each other down, and one would be blamed
Cost:  each call looks at no more engines than are taken at the time, and one
"""

from __future__ import annotations

from collections.abc import Iterable


class Meetings:
    """Engines are named by their lives; of a pair that an engine forms with itself both names are the same.

    A pair that both want and could have is always found: whoever is free and wants somebody is in `_turns`, unless
    all whom it wants are taken; then those will be in `_turns` when they are free, and want it as well.
    """

    def __init__(self) -> None:
        self._wanted: dict[str, dict[str, None]] = {}  # both ways round, in the order they are to be met
        self._turns: dict[str, None] = {}
        self._taken: set[str] = set()
        self._claims: dict[str, int] = {}  # by how many it is waited for: it gets no other meeting before

    def want(self, one: str, other: str) -> None:
        """After all that the two want already."""
        for life, peer in ((one, other), (other, one)):
            self._wanted.setdefault(life, {})[peer] = None
            self._turns[life] = None

    def drop(self, life: str) -> None:
        """It wants nobody any more, and nobody it. If it is taken, that stays so until it is freed."""
        self._turns.pop(life, None)
        for peer in self._wanted.pop(life, ()):
            if peer != life:
                self._unwant(peer, life)

    def next(self) -> tuple[str, str] | None:
        """Takes two that want each other; None while there are none that are free."""
        while self._turns:
            life = next(iter(self._turns))
            del self._turns[life]
            if not self.is_free(life):
                continue  # it has its turn again when it is freed
            for peer in self._wanted.get(life, ()):
                if self.is_free(peer):
                    return self._meet(life, peer)
        return None

    def is_free(self, life: str) -> bool:
        return life not in self._taken and life not in self._claims

    def free(self, lives: Iterable[str]) -> None:
        """What they were taken for is over."""
        for life in lives:
            self._taken.discard(life)
            self._has_its_turn(life)

    def claim(self, lives: Iterable[str]) -> None:
        """Somebody waits for these: they begin no other meeting. Every claim ends with `take` or `unclaim`."""
        for life in dict.fromkeys(lives):
            self._claims[life] = self._claims.get(life, 0) + 1

    def unclaim(self, lives: Iterable[str]) -> None:
        for life in dict.fromkeys(lives):
            self._claims[life] -= 1
            if not self._claims[life]:
                del self._claims[life]
                self._has_its_turn(life)

    def take(self, lives: Iterable[str]) -> bool:
        """Takes all of what was claimed, unless one of them is taken."""
        wanted = dict.fromkeys(lives)
        if not self._taken.isdisjoint(wanted):
            return False
        self._taken.update(wanted)
        self.unclaim(wanted)
        return True

    def __len__(self) -> int:
        """Engines that are taken."""
        return len(self._taken)

    def _meet(self, life: str, peer: str) -> tuple[str, str]:
        self._unwant(life, peer)
        if peer != life:
            self._unwant(peer, life)
        self._turns.pop(peer, None)  # it has had it
        self._taken |= {life, peer}
        return life, peer

    def _unwant(self, life: str, peer: str) -> None:
        wanted = self._wanted[life]
        del wanted[peer]
        if not wanted:
            del self._wanted[life]

    def _has_its_turn(self, life: str) -> None:
        if life in self._wanted and self.is_free(life):
            self._turns[life] = None
