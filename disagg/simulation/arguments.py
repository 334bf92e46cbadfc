"""`device: simulated` in a YAML: what a pool may say under `engine`, and the engine that comes of it.

Way:   pool.engine -> [checks in config, arguments in the plan] -> HostSpec -> host -> [simulated_engine]
Fails: Problems with YAML paths, as for SGLang's arguments
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from disagg.config.problems import near_miss, shown
from disagg.config.rules import PoolText
from disagg.engine.spec import HostSpec
from disagg.errors import Problem
from disagg.registry.records import Role
from disagg.simulation.engine import Model, SimulatedEngine

SETTABLE = {each.name: each.default for each in fields(Model) if each.name not in ("role", "loses_early_aborts")}


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


def simulated_arguments(role: Role, engine: Mapping[str, Any], *, host: str, bootstrap_port: int) -> dict[str, Any]:
    """What HostSpec.arguments holds for a simulated engine."""
    bootstrap = {"bootstrap_host": host, "bootstrap_port": bootstrap_port} if role is Role.PREFILL else {}
    return {**SETTABLE, **engine, **bootstrap}


def simulated_engine(spec: HostSpec) -> SimulatedEngine:
    arguments = dict(spec.arguments)
    host, port = arguments.pop("bootstrap_host", ""), arguments.pop("bootstrap_port", 0)
    model = Model(role=Role(spec.role), **arguments)
    return SimulatedEngine(model, life=spec.life, bootstrap=(host, port) if host else None)
