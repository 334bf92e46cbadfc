"""Checks what pools of `device: simulated` say under `engine`, as engine_arguments.py does for real ones."""

from __future__ import annotations

from disagg.config.rules import PoolText
from disagg.config.validation_errors import near_miss, shown
from disagg.errors import Problem
from disagg.simulated_engine.arguments import SETTABLE


def check_simulated(pools: list[PoolText]) -> list[Problem]:
    problems = []
    for pool in pools:
        for name, value in pool.engine.items():
            path = f"{pool.path}.engine.{name}"
            if name not in SETTABLE:
                would_do = near_miss(str(name), SETTABLE) or f"there are {', '.join(SETTABLE)}"
                problems.append(Problem(path, f"the simulated engine has no argument {name!r}", would_do))
                continue
            least = 0 if name == "cache_block_tokens" else 1 if isinstance(SETTABLE[name], int) else 0.0
            is_whole = isinstance(value, int) and not isinstance(value, bool)
            if not (is_whole or (isinstance(value, float) and isinstance(SETTABLE[name], float))) or value < least:
                kind = "a whole number" if isinstance(SETTABLE[name], int) else "a number"
                problems.append(Problem(path, f"must be {kind} from {least:g}, is {shown(value)}"))
    return problems
