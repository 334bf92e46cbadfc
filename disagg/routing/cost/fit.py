"""A linear law that follows its measurements: least squares that forget, one measurement at a time.

Source: recursive least squares with exponential forgetting, as in K. Åström, B. Wittenmark, "Adaptive Control", 1995
"""

from __future__ import annotations

from collections.abc import Sequence

MEMORY = 0.995  # of the weight of a measurement when the next one comes: some 200 count
TRUST = 0.3  # how far, relatively, the law before the first measurement may be off in each term
FACTOR_MAX = 20.0  # a measurement counts as at most so many times what was expected: a stopped machine teaches nothing


class Fit:
    """y ≈ Σ weights[i] · x[i], with weights that are never negative. Errors count relatively: 1 ms in 10 ms as much as
    1 s in 10 s. Pure Python: there are three terms, and a call of numpy costs more than they do."""

    __slots__ = ("_spread", "count", "weights")

    def __init__(self, weights: Sequence[float], usual: Sequence[float]) -> None:
        """`weights`: before the first measurement; `usual`: an x of ordinary size."""
        self.weights = list(weights)
        self.count = 0
        size = len(self.weights)
        y = max(self(usual), 1e-12)
        spread = [max(weight, TRUST * y / (x * size)) / TRUST for weight, x in zip(weights, usual, strict=True)]
        # Of relative errors: each weight may be off by its spread.
        self._spread = [[(spread[i] ** 2 if i == j else 0.0) for j in range(size)] for i in range(size)]

    def __call__(self, x: Sequence[float]) -> float:
        return sum(weight * each for weight, each in zip(self.weights, x, strict=True))

    def learn(self, x: Sequence[float], y: float) -> None:
        expected = max(self(x), 1e-9)
        y = min(y, FACTOR_MAX * expected)
        if self.count == 0 and y > expected:
            self._scale(y / expected)
        scale = 1.0 / max(y, 1e-9)
        x = [each * scale for each in x]  # so that the error is relative, and y is 1
        spread, size = self._spread, range(len(x))
        reach = [sum(spread[i][j] * x[j] for j in size) for i in size]
        noise = 0.05  # relative variance of one measurement
        gain = [each / (noise * MEMORY + sum(x[j] * reach[j] for j in size)) for each in reach]
        error = 1.0 - sum(self.weights[j] * x[j] for j in size)
        self.weights = [max(0.0, weight + each * error) for weight, each in zip(self.weights, gain, strict=True)]
        self._spread = [[(spread[i][j] - gain[i] * reach[j]) / MEMORY for j in size] for i in size]
        self._bound()
        self.count += 1

    def _scale(self, factor: float) -> None:
        """Of what was there before, only the proportions were right. A law that is too low learns slowly, as its errors
        are relative; one that is too high does not."""
        self.weights = [weight * factor for weight in self.weights]
        self._spread = [[each * factor**2 for each in row] for row in self._spread]

    def _bound(self) -> None:
        """Where nothing is measured in some direction for long, forgetting would let its spread grow for ever."""
        for i, row in enumerate(self._spread):
            limit = (self.weights[i] * 3 + 1e-12) ** 2
            if row[i] > max(limit, 1e-18) * 1e6:
                shrink = (max(limit, 1e-18) * 1e6 / row[i]) ** 0.5
                for j in range(len(row)):
                    row[j] *= shrink
                    self._spread[j][i] *= shrink
