"""A linear law that follows its measurements: least squares that forget, one measurement at a time.

What was measured fades. The law before the first measurement does not: it is a weak voice among the others, so there is
one solution whatever is measured, and what a day of prompts of one length cannot tell stays near what it was. The sums
are kept and solved anew each time. (Recursive least squares, which keep their inverse, lose it to rounding after some
6,000 measurements: each forgetting makes the rounding errors of all before it larger.)
"""

from __future__ import annotations

from collections.abc import Sequence

MEMORY = 0.995  # of the weight of a measurement when the next one comes: some 200 count
TRUST = 0.3  # how far, relatively, the law before the first measurement may be off in each term
FACTOR_MAX = 20.0  # a measurement counts as at most so many times what was expected: a stopped machine teaches nothing
NOISE = 0.05  # relative variance of one measurement


class Fit:
    """y ≈ Σ weights[i] · x[i], with weights that are never negative. Errors count relatively: 1 ms in 10 ms as much as
    1 s in 10 s. Pure Python: there are three terms, and a call of numpy costs more than they do."""

    __slots__ = ("_before", "_given", "_seen", "_spread", "count", "weights")

    def __init__(self, weights: Sequence[float], usual: Sequence[float]) -> None:
        """`weights`: before the first measurement; `usual`: an x of ordinary size."""
        self.weights = list(weights)
        self.count = 0
        size = len(self.weights)
        y = max(self(usual), 1e-12)
        # Each weight may be off by its spread. What is solved for are weights in units of these.
        self._spread = [max(weight, TRUST * y / (x * size)) / TRUST for weight, x in zip(weights, usual, strict=True)]
        self._before = [weight / spread for weight, spread in zip(weights, self._spread, strict=True)]
        self._seen = [[0.0] * size for _ in range(size)]
        self._given = [0.0] * size

    def __call__(self, x: Sequence[float]) -> float:
        return sum(weight * each for weight, each in zip(self.weights, x, strict=True))

    def learn(self, x: Sequence[float], y: float) -> None:
        expected = max(self(x), 1e-9)
        y = min(y, FACTOR_MAX * expected)
        if self.count == 0:  # of what was there before, only the proportions were right
            factor = max(y / expected, 1 / FACTOR_MAX)
            self._spread = [spread * factor for spread in self._spread]
        scale = 1.0 / max(y, expected)  # not 1 / y: one that was far too quick would outweigh hundreds
        x = [each * scale * spread for each, spread in zip(x, self._spread, strict=True)]
        for i, (row, each) in enumerate(zip(self._seen, x, strict=True)):
            self._seen[i] = [MEMORY * seen + each * other / NOISE for seen, other in zip(row, x, strict=True)]
            self._given[i] = MEMORY * self._given[i] + each * y * scale / NOISE
        self.weights = [each * spread for each, spread in zip(self._solved(), self._spread, strict=True)]
        self.count += 1

    def _solved(self) -> list[float]:
        """Weights in units of spreads. Where some would be negative, without the most negative one."""
        solved, terms = [0.0] * len(self._given), list(range(len(self._given)))
        while terms:
            found = self._solved_for(terms)
            least = min(range(len(terms)), key=found.__getitem__)
            if found[least] >= 0:
                for term, each in zip(terms, found, strict=True):
                    solved[term] = each
                break
            del terms[least]
        return solved

    def _solved_for(self, terms: Sequence[int]) -> list[float]:
        """By elimination. With 1 for what was before the first measurement, no pivot is less than 1."""
        rows = [[self._seen[i][j] + (i == j) for j in terms] + [self._given[i] + self._before[i]] for i in terms]
        for k, row in enumerate(rows):
            pivot = row[k] = max(1.0, row[k])
            for lower in rows[k + 1 :]:
                factor = lower[k] / pivot
                for j in range(k, len(row)):
                    lower[j] -= factor * row[j]
        found = [0.0] * len(rows)
        for k in reversed(range(len(rows))):
            found[k] = (rows[k][-1] - sum(rows[k][j] * found[j] for j in range(k + 1, len(rows)))) / rows[k][k]
        return found
