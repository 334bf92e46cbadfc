"""Which fields of a configuration are secrets: they do not travel with it, and are neither compared nor shown.

Way:   sent_tree -> [without]; the controller -> [spelt, over]: it has them, and puts them back
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, SecretStr

from disagg.config.environment_values import names_in

Path = tuple[str, ...]
SECRETS: tuple[Path, ...] = (
    ("security", "api_keys"),
    ("security", "admin_keys"),
    ("security", "secret"),
    ("registry", "password"),
    ("telemetry", "traces", "headers"),
)

NEEDED = {("registry", "password"): ("registry", "user")}  # a secret is nothing without that field


def excluded() -> dict[str, Any]:
    """As pydantic's `exclude`."""
    found: dict[str, Any] = {}
    for *sections, key in SECRETS:
        there = found
        for section in sections:
            there = there.setdefault(section, {})
        there[key] = True
    return found


def without(tree: Mapping[str, Any], paths: Iterable[Path] = SECRETS) -> dict[str, Any]:
    """The tree, which is left as it is, without these fields."""
    found = dict(tree)
    for first, *rest in paths:
        if not rest:
            found.pop(first, None)
        elif isinstance(there := found.get(first), Mapping):
            found[first] = without(there, [tuple(rest)])
    return found


def are_in(tree: Mapping[str, Any]) -> bool:
    return any(_at(tree, path) for path in SECRETS)


def variables(tree: Mapping[str, Any]) -> frozenset[str]:
    """Of the environment, from which a tree as files say it takes its secrets."""
    return frozenset(name for path in SECRETS for name in names_in(_at(tree, path)))


def spelt(deployment: BaseModel) -> dict[Path, Any]:
    """Those that it has, as a file would say them."""
    said = {path: _plain(_at(deployment, path)) for path in SECRETS}
    return {path: value for path, value in said.items() if value}


def over(tree: Mapping[str, Any], secrets: Mapping[Path, Any]) -> dict[str, Any]:
    """The tree with these. A section within one that it does not say is off, and stays so; so does what is nothing
    without a field that it does not say."""
    found = dict(tree)
    for path, value in secrets.items():
        first, *rest = path
        if path in NEEDED and not _at(tree, NEEDED[path]):
            continue
        if not rest:
            found[first] = value
        elif isinstance(there := found.get(first) or {}, Mapping) and (len(rest) == 1 or there.get(rest[0])):
            found[first] = over(there, {tuple(rest): value})
    return found


def _at(value: Any, path: Path) -> Any:
    """None: it is not there."""
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else getattr(value, key, None)
    return value


def _plain(value: Any) -> Any:
    match value:
        case SecretStr():
            return value.get_secret_value()
        case BaseModel():
            return {
                name: _plain(getattr(value, name))
                for name in type(value).model_fields
                if name in value.model_fields_set
            }
        case Mapping():
            return {name: _plain(each) for name, each in value.items()}
        case tuple() | list():
            return [_plain(each) for each in value]
    return value
