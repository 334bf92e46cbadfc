"""`extends:` one configuration says only what differs from another.

Way:   file -> tree -> [extends] -> overrides -> Deployment
In:    a name that ships (local-cpu), or a path, from the folder of the file that says it
Out:   one tree (mappings are merged; everything else is replaced, also pools and lists), and the files it came from,
       so that a problem can name the file it is in
Fails: never by itself; what is wrong with a file of the chain comes back as Problems
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from disagg.config.find import find_config
from disagg.config.yaml_text import read_file, read_tree
from disagg.errors import ConfigError, Problem
from disagg.role_table import ROLES

DEPTH_MAX = 8


@dataclass(frozen=True, slots=True)
class Layer:
    """One file of the chain, as it is written."""

    source: str
    tree: dict[str, Any]


def layers_of(tree: dict[str, Any], source: str, file: Path | None) -> tuple[list[Layer], list[Problem]]:
    """What `tree` extends, and what that extends, nearest first; `tree` itself is the first."""
    layers, seen = [Layer(source, tree)], [file.resolve()] if file else []
    while (named := layers[-1].tree.get("extends")) is not None:
        said_in = "" if len(layers) == 1 else f" (in {layers[-1].source})"
        if not isinstance(named, str) or not named:
            return layers, [Problem("extends", f"is no name of a configuration{said_in}", "say a name or a path")]
        try:
            path = find_config(named, seen[-1].parent if seen else Path())
            if path.resolve() in seen:
                what = f"comes back to {path}{said_in}"
                return layers, [Problem("extends", what, "let the last file of the chain extend nothing")]
            if len(layers) > DEPTH_MAX:
                what = f"goes through more than {DEPTH_MAX} files{said_in}"
                return layers, [Problem("extends", what, "extend a file nearer to the end of the chain")]
            below, problems = read_tree(read_file(path), str(path))
        except ConfigError as error:
            (problem,) = error.problems
            return layers, [Problem("extends", f"{problem.path} {problem.what}{said_in}", problem.would_do)]
        if not isinstance(below, dict):
            return layers, problems or [Problem(str(path), "is not a mapping of keys", "start with `version: 1`")]
        if problems:
            return layers, problems
        seen.append(path.resolve())
        layers.append(Layer(str(path), below))
    return layers, []


def folder_of(layers: Sequence[Layer], keys: Sequence[str], said: Any, file: Path | None) -> Path:
    """Of the nearest file that says this at `keys`; else (from --set, or the environment) of the first, `file`."""
    first = file.parent if file is not None else Path()
    for layer in layers:
        found: Any = layer.tree
        for key in keys:
            found = found.get(key) if isinstance(found, dict) else None
        if found == said and found is not None:
            return first if layer is layers[0] else Path(layer.source).parent
    return first


def merged(layers: Sequence[Layer]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for layer in reversed(layers):
        tree = _over(tree, layer.tree, {})
        tree.pop("extends", None)
    return tree


def said_where(problem: Problem, layers: Sequence[Layer]) -> Problem:
    """The problem with the name of the file it is in, unless that is the first file."""
    keys = problem.path.split(".")
    nearest = max(layers, key=lambda layer: _known(layer.tree, keys))  # the first of equals
    return problem if nearest is layers[0] else replace(problem, what=f"{problem.what} (in {nearest.source})")


Merged = dict[tuple[int, int], dict[str, Any]]


def _over(below: dict[str, Any], above: dict[str, Any], done: Merged, keys: tuple[str, ...] = ()) -> dict[str, Any]:
    """`done`: YAML's aliases may put a mapping into itself, or a thousand times into one."""
    key = (id(below), id(above))
    if key in done:
        return done[key]
    tree = done[key] = dict(below)
    for name, value in above.items():
        under = tree.get(name)
        if isinstance(value, dict) and isinstance(under, dict) and not _is_pools(name, keys):
            tree[name] = _over(under, value, done, (*keys, str(name)))
        else:
            tree[name] = value
    return tree


def _is_pools(name: Any, keys: tuple[str, ...]) -> bool:
    """They are replaced as a whole."""
    return name in ROLES and (not keys or (keys[0] == "models" and len(keys) == 2))


def _known(tree: Any, keys: list[str]) -> int:
    """How many of `keys` lead somewhere in `tree`."""
    for count, key in enumerate(keys):
        if isinstance(tree, list) and key.isdecimal() and int(key) < len(tree):
            tree = tree[int(key)]
        elif isinstance(tree, dict) and key in tree:
            tree = tree[key]
        else:
            return count
    return len(keys)
