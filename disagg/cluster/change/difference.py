"""What differs between two configurations, field by field, and when each difference takes effect.

Way:   what is wanted + a configuration -> [differences] -> outline.py, `disagg apply`
In:    two Deployments; keys and passwords are never compared, nor shown, and what engines' variables (env) hold is
       never shown: no name tells that it is no secret
Out:   Differences in the order of the schema
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import yaml

from disagg.config.schema import Deployment
from disagg.config.secrets import excluded
from disagg.role_table import ROLES

SHOWN_CHARACTERS = 60  # of a value
ABSENT = "(absent)"
LEFT_OUT = "left out"


class Effect(StrEnum):
    ENGINES = "engines"  # those of that pool start anew, or are added, or removed
    NOW = "from now on"
    NEXT_START = "takes effect at the next start"
    NEW_DEPLOYMENT = "cannot change while it serves; needs a new deployment"
    NEW_MODEL = "would be another model; say it under another name in the place of this one"


# By the longest beginning of a field's path. What is not here needs a new deployment.
EFFECTS = {
    **{role.value: Effect.ENGINES for role in ROLES},
    "telemetry.log_level": Effect.ENGINES,
    "telemetry.engine_metrics": Effect.ENGINES,
    "telemetry.metric_aliases": Effect.NEXT_START,
    "transfer.page_size": Effect.ENGINES,
    "transfer.allow_tcp": Effect.NOW,
    "transfer.lanes": Effect.NOW,
    "transfer.places": Effect.NEXT_START,
    "model.tool_call_parser": Effect.NEXT_START,
    "model.reasoning_parser": Effect.NEXT_START,
    "model.sampling_defaults": Effect.NEXT_START,
    "model.chat_template": Effect.NEXT_START,
    "model.chat_template_kwargs": Effect.NEXT_START,
    "frontend": Effect.NEXT_START,
    "deadlines": Effect.NEXT_START,
    "routing": Effect.NEXT_START,
    "health": Effect.NEXT_START,
    "security": Effect.NEXT_START,
}


@dataclass(frozen=True, slots=True)
class Difference:
    path: str
    before: Any
    after: Any

    @property
    def effect(self) -> Effect:
        keys, fixed = self.path.split("."), Effect.NEW_DEPLOYMENT
        if keys[0] == "models":
            _, _, *of_model = keys
            if not of_model:
                return Effect.ENGINES
            keys, fixed = (of_model if of_model[0] in ROLES else ["model", *of_model]), Effect.NEW_MODEL
        found = (EFFECTS.get(".".join(keys[:count])) for count in range(len(keys), 0, -1))
        return next(filter(None, found), fixed)

    def __str__(self) -> str:
        parts = self.path.split(".")
        if "env" in parts:
            return f"{self.path}: changes"
        return f"{self.path}: {_shown(self.before)} -> {_shown(self.after)}"


def differences(before: Deployment, after: Deployment) -> list[Difference]:
    """A model that comes, or goes, is one difference."""
    trees = [said(deployment) for deployment in (before, after)]
    both = before.models.keys() & after.models.keys()
    for tree in trees:
        models = tree.get("models") or {}
        tree["models"] = {key: model if key in both else model["path"] for key, model in models.items()}
    one, other = (dict(_fields(tree, "")) for tree in trees)
    paths = [*one, *(path for path in other if path not in one)]
    compared = (Difference(path, one.get(path, ABSENT), other.get(path, ABSENT)) for path in paths)
    return [each for each in compared if each.before != each.after]


def said(deployment: Deployment) -> dict[str, Any]:
    """As a tree, without keys and passwords; what stands there by default as well."""
    tree = deployment.model_dump(mode="json", exclude=excluded())
    for pools in (tree, *tree["models"].values()):
        pools |= {role.value: _one_or_many(pools[role.value]) for role in ROLES}
    return tree


def as_yaml(deployment: Deployment) -> str:
    """What a file would say, without keys, passwords, values of variables, and what is the default."""
    tree = deployment.model_dump(mode="json", exclude=excluded(), exclude_defaults=True)
    for section in (tree, *tree.get("models", {}).values()):
        for role in ROLES:
            for pool in section.get(role.value, ()):
                if env := pool.get("env"):
                    pool["env"] = dict.fromkeys(env, LEFT_OUT)
            if role.value in section:
                section[role.value] = _one_or_many(section[role.value])
    return yaml.safe_dump(tree, sort_keys=False)


def _one_or_many(pools: list[Any]) -> Any:
    """One pool is no list, as in most files."""
    return pools[0] if len(pools) == 1 else pools


def _fields(tree: Any, path: str) -> Iterator[tuple[str, Any]]:
    """(path, value); mappings and lists of pools are gone through, what is empty is not there."""
    if isinstance(tree, list) and path.rpartition(".")[2] in ROLES and path.count(".") in (0, 2):
        tree = {str(index): pool for index, pool in enumerate(tree)}
    if not isinstance(tree, Mapping):
        yield path, tree
        return
    for key, value in tree.items():
        yield from _fields(value, f"{path}.{key}" if path else str(key))


def _shown(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 1] + "…"
