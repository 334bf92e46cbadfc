"""Which engines are wanted: a configuration, of one model or several, and a name for each engine that fits what runs.

Way:   an order -> [scaled, with_role, Wanted.of] -> outline.py: what differs from what runs
In:    plans as `resolve` makes them; what runs, by name
Out:   plain data. An engine that stays keeps its name; one more gets the lowest number of its role that is free
Fails: Refused, with what would do
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from disagg.config.schema import Deployment, Pool
from disagg.lives import engine_id_in, number_of
from disagg.planning.plan import Device, EnginePlan, Plan, resolve, resolve_parts
from disagg.roles import Role

COUNT_MAX = 1000  # of a pool (disagg/config/schema.py)

Duty = tuple[str, Role]  # which of several models, and what is done for it


class Refused(Exception):
    """The order cannot be carried out. Its text: what is wrong; what would do."""


@dataclass(frozen=True, slots=True)
class Wanted:
    deployment: Deployment
    engines: Mapping[str, EnginePlan]

    @classmethod
    def of(cls, deployment: Deployment, device: Device, running: Mapping[str, EnginePlan]) -> Wanted:
        """Raises ConfigError as `resolve` does."""
        engines = [engine for plan in resolve_parts(deployment, device) for engine in plan.engines]
        return cls(deployment, named(engines, running))

    def plans(self, device: Device) -> tuple[Plan, ...]:
        """One for each model."""
        return tuple(self._plan(part, device) for part in self.deployment.parts())

    def _plan(self, part: Deployment, device: Device) -> Plan:
        own = [each for each in self.engines.values() if each.group == part.key]
        others = [each for each in self.engines.values() if each.group != part.key]
        return Plan(part, device, tuple(own), beside=tuple(others))


def named(engines: Iterable[EnginePlan], running: Mapping[str, EnginePlan]) -> dict[str, EnginePlan]:
    """The engines of each pool under the names of those that run there, the lowest numbers first."""
    found: dict[str, EnginePlan] = {}
    by_pool: dict[tuple[Duty, str], list[EnginePlan]] = {}
    for engine in engines:
        by_pool.setdefault((duty_of(engine), engine.pool), []).append(engine)
    taken = set(running)
    for (duty, pool), of_pool in by_pool.items():
        here = sorted((e.id for e in running.values() if (duty_of(e), e.pool) == (duty, pool)), key=number_of)
        for engine in of_pool:
            engine_id = here.pop(0) if here else free_name(duty, taken)
            taken.add(engine_id)
            found[engine_id] = dataclasses.replace(engine, id=engine_id)
    return found


def duty_of(engine: EnginePlan) -> Duty:
    return engine.group, engine.role


def free_name(duty: Duty, taken: Iterable[str]) -> str:
    there, (group, role) = set(taken), duty
    names = (engine_id_in(group, f"{role.value}-{n}") for n in range(len(there) + 1))
    return next(name for name in names if name not in there)


def duty_called(deployment: Deployment, name: str) -> Duty:
    """`prefill`, or of one of several models `chat.prefill`. Raises Refused."""
    group, _, role = name.rpartition(".")
    if role not in list(Role):
        raise Refused(f"'{name[:100]}' is no role; say one of {', '.join(engine_id_in(group, each) for each in Role)}")
    if group not in (keys := [part.key for part in deployment.parts()]):
        there = ", ".join(engine_id_in(key, role) for key in keys)
        raise Refused(f"'{name[:100]}' names no model's engines here; say {there}")
    return group, Role(role)


def of_model(deployment: Deployment, group: str) -> Deployment:
    """The part; where there is one model, all of it."""
    return next(part for part in deployment.parts() if part.key == group)


def _with_pools(deployment: Deployment, duty: Duty, pools: Iterable[Pool]) -> Deployment:
    group, role = duty
    pools_of_role = {role.value: tuple(pools)}
    if not group:
        return deployment.model_copy(update=pools_of_role)
    model = deployment.models[group].model_copy(update=pools_of_role)
    return deployment.model_copy(update={"models": {**deployment.models, group: model}})


def scaled(deployment: Deployment, duty: Duty, count: int) -> Deployment:
    """`count` engines. Of several pools the last one changes first. Raises Refused."""
    group, role = duty
    pools = list(of_model(deployment, group).of_role(role))
    if not pools:
        who, would_do = group or "this deployment", "`disagg apply` a configuration that has them"
        raise Refused(f"{who} has no {role} engines, and what they should be is not known; {would_do}")
    if not 0 <= count <= COUNT_MAX:
        raise Refused(f"{engine_id_in(group, role)}={count} is no count of engines; say 0 to {COUNT_MAX}")
    more = count - sum(pool.replicas for pool in pools)
    for index in reversed(range(len(pools))):
        replicas = max(0, pools[index].replicas + more)
        more -= replicas - pools[index].replicas
        pools[index] = _with_replicas(pools[index], replicas)
        if not more:
            break
    return _with_pools(deployment, duty, pools)


def with_role(now: Wanted, engine_id: str, role: Role, device: Device) -> tuple[Wanted, EnginePlan]:
    """The engine gets another role, and so another name; the others stay. Raises Refused."""
    engine = now.engines.get(engine_id)
    if engine is None:
        raise Refused(f"there is no engine '{engine_id[:100]}'; there are {', '.join(sorted(now.engines))}")
    if engine.role is role:
        raise Refused(f"{engine_id} has the role {role} already")
    duty = engine.group, role
    of_role = len([each for each in now.engines.values() if duty_of(each) == duty])
    pools = list(of_model(now.deployment, engine.group).of_role(engine.role))
    names = [pool.name or f"{engine.role.value}.{index}" for index, pool in enumerate(pools)]
    index = names.index(engine.pool)
    pools[index] = _with_replicas(pools[index], pools[index].replicas - 1)
    deployment = scaled(_with_pools(now.deployment, duty_of(engine), pools), duty, of_role + 1)
    pool = resolve(of_model(deployment, engine.group), device).of_role(role)[-1]
    following = dataclasses.replace(pool, id=free_name(duty, now.engines))
    if not fits_place(engine, following):
        what = f"{engine_id} has {share(engine)}, and engines of the role {role} need {share(following)} here"
        raise Refused(f"{what}; use `disagg scale`, which gives it a place of its own")
    engines = {name: each for name, each in now.engines.items() if name != engine_id}
    return Wanted(deployment, engines | {following.id: following}), following


def fits_place(one: EnginePlan, other: EnginePlan) -> bool:
    """Whether the second can have the place of the first."""
    return (one.cpus, one.gpus, one.nodes) == (other.cpus, other.gpus, other.nodes)


def share(engine: EnginePlan) -> str:
    on = f" on each of {engine.nodes} nodes" if engine.nodes > 1 else ""
    gpus = f" and {engine.gpus:g} GPU" if engine.gpus else ""
    return f"{engine.cpus:g} CPU{gpus}{on}"


def _with_replicas(pool: Pool, replicas: int) -> Pool:
    """Unchecked: a pool may have none while the deployment lives, so that it can have some again."""
    return pool.model_copy(update={"replicas": replicas})
