"""Where a file speaks of models: under `model`, or under each name of `models`.

Way:   file -> tree -> [model_texts] -> what is read beside the file (chat templates, adapters), and parts.py
In:    a tree, nothing in it is checked
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from disagg.errors import Problem
from disagg.role_table import ROLES


class ModelText(NamedTuple):
    """A model's section as it is written."""

    keys: tuple[str, ...]  # where it is
    section: dict[str, Any]

    @property
    def path(self) -> str:
        return ".".join(self.keys)

    def put(self, tree: dict[str, Any], section: dict[str, Any]) -> dict[str, Any]:
        """A tree with this in its place."""
        return _put(tree, self.keys, section)


def model_texts(tree: dict[str, Any]) -> list[ModelText]:
    """`model`, and each of `models`, if it is a mapping."""
    models = tree.get("models")
    found = [ModelText(("model",), tree["model"])] if isinstance(tree.get("model"), dict) else []
    several = models.items() if isinstance(models, dict) else ()
    return found + [ModelText(("models", str(key)), said) for key, said in several if isinstance(said, dict)]


def of_each_model(
    tree: dict[str, Any], change: Callable[[ModelText, dict[str, Any]], tuple[dict[str, Any], list[Problem]]]
) -> tuple[dict[str, Any], list[Problem]]:
    """The tree after `change` has put what it made of each model into it, and all that it found wrong."""
    problems: list[Problem] = []
    for text in model_texts(tree):
        tree, found = change(text, tree)
        problems += found
    return tree, problems


def path_in(key: str, path: str) -> str:
    """The path of what is one model's own, where there are several: `models.NAME.prefill` of prefill."""
    first, dot, rest = path.partition(".")
    if not key or not (first == "model" or first in ROLES):
        return path
    return f"models.{key}{dot}{rest}" if first == "model" else f"models.{key}.{path}"


def _put(tree: dict[str, Any], keys: tuple[str, ...], value: dict[str, Any]) -> dict[str, Any]:
    first, *rest = keys
    return {**tree, first: _put(tree[first], tuple(rest), value) if rest else value}
