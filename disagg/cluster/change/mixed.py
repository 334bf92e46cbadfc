"""Whether engines of two configurations can work together for the time in which one follows the other.

Way:   keeper.py -> [problems_of_both, why_not_by_frontends] -> the preflight's rules on pools, old and new together
Out:   what speaks against the mixture alone: what is wrong with the new configuration itself is the preflight's to say
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from disagg.config.rules import texts_of
from disagg.config.schema import Deployment, Pool
from disagg.errors import Problem
from disagg.planning.kv_pages import block_tokens
from disagg.planning.plan import Device
from disagg.preflight.all_rules import RULES, problems
from disagg.preflight.subject import Subject, pool_views
from disagg.role_table import ROLES

_BESIDE = "start another deployment beside this one"


def problems_of_both(old: Deployment, new: Deployment, device: Device) -> list[Problem]:
    """Of each model that both have."""
    return [problem for pair in _in_both(old, new) for problem in _of_one_model(*pair, device)]


def _in_both(old: Deployment, new: Deployment) -> Iterator[tuple[Deployment, Deployment]]:
    before = {part.key: part for part in old.parts()}
    return ((before[part.key], part) for part in new.parts() if part.key in before)


def _of_one_model(old: Deployment, new: Deployment, device: Device) -> list[Problem]:
    both = {role.value: _both(old.of_role(role), new.of_role(role)) for role in ROLES}
    mixture = _problems(new.model_copy(update=both), device)
    of_one = {each.what for one in (old, new) for each in _problems(one, device)}
    return [each for each in mixture if each.what not in of_one]


def why_not_by_frontends(told: Deployment, new: Deployment) -> str:
    """What frontends were told, and the new engines would not heed. Empty: nothing."""
    return next(filter(None, (_why_not(*pair) for pair in _in_both(told, new))), "")


def _why_not(told: Deployment, new: Deployment) -> str:
    one, other = _told(told), _told(new)
    if one.keys() != other.keys():
        return "frontends serve tokens, or vectors, as there were engines for them at the start; " + _BESIDE
    if one != other:
        return "the KV blocks in which engines tell what they have cached would be of another size; " + _BESIDE
    return ""


def _told(deployment: Deployment) -> dict[bool, int]:
    """Whether vectors or tokens are made -> how many tokens a KV block has there."""
    by_kind: dict[bool, list[Mapping[str, Any]]] = {}
    for role, _, pool in deployment.pools():
        by_kind.setdefault(ROLES[role].embeds, []).append(pool.engine)
    return {embeds: 0 if embeds else block_tokens(engines) for embeds, engines in by_kind.items()}


def _both(old: tuple[Pool, ...], new: tuple[Pool, ...]) -> tuple[Pool, ...]:
    """The new ones, and those of the old that differ in more than their number and name."""
    shapes = [_shape(pool) for pool in new]
    return (*new, *(pool for pool in old if _shape(pool) not in shapes))


def _shape(pool: Pool) -> Pool:
    return pool.model_copy(update={"replicas": 1, "name": None})


def _problems(deployment: Deployment, device: Device) -> list[Problem]:
    settings = deployment.model_dump(exclude={role.value for role in ROLES})
    return problems(Subject(pool_views(texts_of(deployment), device), device, settings=settings), RULES)
