"""One rule of the preflight: a plain function over plain data, and, above it, what there is to say about it.

Way:   Subject -> [Rule.problems] -> Problem(path, what, would do, why) -> ConfigError, before anything starts
Fails: never; a rule that lacks a fact (no model folder, no nodes known) finds nothing
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from disagg.errors import Problem
from disagg.preflight.subject import Subject

Check = Callable[[Subject], Iterator[Problem]]


@dataclass(frozen=True, slots=True)
class Rule:
    """`why`: what would happen later. `thread`: who reported it, or where SGLang does it. The operator is shown
    both."""

    name: str
    check: Check
    why: str
    thread: str
    would_do: str  # the advice where the problem itself has none

    def problems(self, subject: Subject) -> Iterator[Problem]:
        for problem in self.check(subject):
            why = f"{self.why}: {self.thread}" if self.thread else self.why
            yield replace(problem, why=why, would_do=problem.would_do or self.would_do)


def rule(why: str, thread: str, would_do: str) -> Callable[[Check], Rule]:
    """Makes a Rule of the function below it, and names it as the function."""
    return lambda check: Rule(check.__name__.removeprefix("_"), check, why, thread, would_do)
