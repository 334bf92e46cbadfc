"""Whether engines of two configurations can work together for the time in which one follows the other.

Way:   keeper.py -> [problems_of_both] -> the preflight's rules on pools, over old and new ones side by side
Out:   what speaks against the mixture alone: what is wrong with the new configuration itself is the preflight's to say
"""

from __future__ import annotations

from disagg.config.rules import texts_of
from disagg.config.schema import Deployment, Pool
from disagg.errors import Problem
from disagg.planning.plan import Device
from disagg.preflight.all_rules import RULES, problems
from disagg.preflight.subject import Subject, pool_views
from disagg.role_table import ROLES


def problems_of_both(old: Deployment, new: Deployment, device: Device) -> list[Problem]:
    both = {role.value: _both(old.of_role(role), new.of_role(role)) for role in ROLES}
    mixture = _problems(new.model_copy(update=both), device)
    of_one = {each.what for one in (old, new) for each in _problems(one, device)}
    return [each for each in mixture if each.what not in of_one]


def _both(old: tuple[Pool, ...], new: tuple[Pool, ...]) -> tuple[Pool, ...]:
    """The new ones, and those of the old that differ in more than their number and name."""
    shapes = [_shape(pool) for pool in new]
    return (*new, *(pool for pool in old if _shape(pool) not in shapes))


def _shape(pool: Pool) -> Pool:
    return pool.model_copy(update={"replicas": 1, "name": None})


def _problems(deployment: Deployment, device: Device) -> list[Problem]:
    settings = deployment.model_dump(exclude={role.value for role in ROLES})
    return problems(Subject(pool_views(texts_of(deployment), device), device, settings=settings), RULES)
