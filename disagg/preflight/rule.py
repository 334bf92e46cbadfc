"""One rule of the preflight: a plain function over plain data, its docstring what would happen without it.

Way:   Subject -> [Rule.problems] -> Problem(path, what, would do, why) -> ConfigError, before anything starts
Fails: never; a rule that lacks a fact (no model folder, no nodes known) finds nothing
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from disagg.errors import Problem
from disagg.preflight.subject import PoolView, Subject

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


def rule(thread: str, would_do: str) -> Callable[[Check], Rule]:
    """Makes a Rule of the function below it, named as that function, its cause the docstring's first paragraph."""
    return lambda check: _named(check, check, thread, would_do)


def pool_rule(thread: str, would_do: str) -> Callable[[Callable[[PoolView], Iterator[Problem]]], Rule]:
    """The same of a function that looks at one pool, whichever the others are."""
    return lambda check: _named(
        check, lambda subject: (problem for pool in subject.pools for problem in check(pool)), thread, would_do
    )


def pair_rule(thread: str, would_do: str) -> Callable[[Callable[[PoolView, PoolView], Iterator[Problem]]], Rule]:
    """The same of a function that looks at the two pools of a transfer, its sender first."""
    return lambda check: _named(
        check, lambda subject: (problem for pair in subject.pairs() for problem in check(*pair)), thread, would_do
    )


def _named(function: Callable[..., Iterator[Problem]], check: Check, thread: str, would_do: str) -> Rule:
    why = " ".join((function.__doc__ or "").split("\n\n")[0].split())
    return Rule(function.__name__.removeprefix("_"), check, why, thread, would_do)
