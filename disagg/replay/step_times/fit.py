"""From measured step times to the few numbers that a simulated engine has, and how far they are off.

In:    points: a step's work, and the seconds that its source tells
Out:   coefficients of work, none negative, with the least squares of relative errors; the errors themselves
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median

from disagg.simulated_engine.model import pairs_of

Terms = tuple[float, ...]  # the work of a step by kind; the first is 1: a step as such


@dataclass(frozen=True, slots=True)
class Point:
    work: Terms
    seconds: float


@dataclass(frozen=True, slots=True)
class Fit:
    """Errors are relative."""

    coefficients: Terms
    error_median: float
    error_max: float
    points: int

    def seconds(self, work: Terms) -> float:
        return sum(each * count for each, count in zip(self.coefficients, work, strict=True))


def prefill_point(tokens: int, before: int, seconds: float) -> Point:
    return Point((1.0, tokens, pairs_of(tokens, before)), seconds)


def decode_point(legs: int, context_tokens: int, seconds: float) -> Point:
    return Point((1.0, legs, legs * context_tokens), seconds)


def fit(points: Sequence[Point]) -> Fit:
    """Raises ValueError where there are fewer points than terms."""
    terms = len(points[0].work) if points else 0
    if len(points) < max(1, terms):
        raise ValueError(f"{len(points)} points for {terms} coefficients")
    found = (_least_squares(points, used) for size in range(1, terms + 1) for used in combinations(range(terms), size))
    feasible = [each for each in found if each is not None and min(each) >= 0]
    best = min(feasible, key=lambda each: sum(error * error for error in _errors(each, points)))
    errors = [abs(error) for error in _errors(best, points)]
    return Fit(best, median(errors), max(errors), len(points))


def _errors(coefficients: Terms, points: Sequence[Point]) -> list[float]:
    return [
        sum(each * count for each, count in zip(coefficients, point.work, strict=True)) / point.seconds - 1
        for point in points
    ]


def _least_squares(points: Sequence[Point], used: tuple[int, ...]) -> Terms | None:
    """Of the used terms alone; the others are 0. None where they depend on each other."""
    rows = [[point.work[term] / point.seconds for term in used] for point in points]
    scale = [max(abs(row[column]) for row in rows) or 1.0 for column in range(len(used))]
    rows = [[value / scale[column] for column, value in enumerate(row)] for row in rows]
    matrix = [
        [sum(row[i] * row[j] for row in rows) for j in range(len(used))] + [sum(row[i] for row in rows)]
        for i in range(len(used))
    ]
    solved = _solved(matrix)
    if solved is None:
        return None
    by_term = {term: value / scale[column] for column, (term, value) in enumerate(zip(used, solved, strict=True))}
    return tuple(by_term.get(term, 0.0) for term in range(len(points[0].work)))


def _solved(matrix: list[list[float]]) -> list[float] | None:
    """Gauss's elimination; each row ends with its right side."""
    size = len(matrix)
    for column in range(size):
        pivot = max(range(column, size), key=lambda row: abs(matrix[row][column]))
        if abs(matrix[pivot][column]) < 1e-12:
            return None
        matrix[column], matrix[pivot] = matrix[pivot], matrix[column]
        for row in range(size):
            if row != column:
                factor = matrix[row][column] / matrix[column][column]
                matrix[row] = [a - factor * b for a, b in zip(matrix[row], matrix[column], strict=True)]
    return [matrix[row][size] / matrix[row][row] for row in range(size)]
