"""`device: simulated` in a YAML: what a pool may say under `engine`, and the engine that comes of it.

Way:   pool.engine (checked by disagg/config/simulated.py) -> [simulated_arguments] -> HostSpec -> host ->
       [simulated_engine]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from disagg.host_spec import HostSpec
from disagg.role_table import ROLES
from disagg.roles import Role
from disagg.simulated_engine.engine import SimulatedEngine
from disagg.simulated_engine.model import Model

SETTABLE = {each.name: each.default for each in fields(Model) if each.name not in ("role", "loses_early_aborts")}


def simulated_arguments(role: Role, engine: Mapping[str, Any], *, host: str, bootstrap_port: int) -> dict[str, Any]:
    """What HostSpec.arguments holds for a simulated engine."""
    bootstrap = {"bootstrap_host": host, "bootstrap_port": bootstrap_port} if ROLES[role].has_bootstrap_server else {}
    return {**SETTABLE, **engine, **bootstrap}


def simulated_engine(spec: HostSpec, **world: Any) -> SimulatedEngine:
    """`world`: network, random and wall_s, where they are not this machine's."""
    arguments = dict(spec.arguments)
    host, port = arguments.pop("bootstrap_host", ""), arguments.pop("bootstrap_port", 0)
    model = Model(role=Role(spec.role), **arguments)
    return SimulatedEngine(model, life=spec.life, bootstrap=(host, port) if host else None, **world)
