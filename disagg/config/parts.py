"""A tree of several models, taken apart: what each model would be alone, in the words of a deployment of one.

Way:   file -> tree -> [parts_of] -> rules of one deployment, once a part -> Problems with the paths of the file
In:    a tree, nothing in it is checked
Fails: `problems` tells what no part could tell: both forms at once, names that two models share
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from disagg.config.model_texts import ModelText, model_texts, path_in
from disagg.errors import Problem
from disagg.role_table import ROLES

SHORT_FORM = ("model", *ROLES)  # of one model


class Part(NamedTuple):
    key: str  # empty: of the only model
    tree: dict[str, Any]

    def told(self, problem: Problem) -> Problem:
        """With its path in the whole file."""
        path = "model" if problem.path == "configuration" and self.key else problem.path
        return replace(problem, path=path_in(self.key, path))


def parts_of(tree: dict[str, Any]) -> list[Part]:
    """Of models that are at least mappings. (The schema refuses the others.)"""
    if not isinstance(tree.get("models"), dict):
        return [] if "models" in tree else [Part("", tree)]
    shared = {name: value for name, value in tree.items() if name not in ("models", *SHORT_FORM)}
    parts = []
    for text in model_texts({"models": tree["models"]}):
        pools = {role.value: text.section[role] for role in ROLES if role in text.section}
        model = {name: value for name, value in text.section.items() if name not in ROLES}
        parts.append(Part(text.keys[-1], {**shared, "model": model, **pools}))
    return parts


def problems(tree: dict[str, Any]) -> Iterator[Problem]:
    """Between models, and between the two forms."""
    if "models" not in tree:
        if "model" not in tree:
            yield Problem("model", "is missing", "add `model: …`")
        return
    models = tree["models"]
    for name in SHORT_FORM:
        if tree.get(name) not in (None, []):
            would_do = f"say it under models.NAME{'' if name == 'model' else f'.{name}'}, or leave out models"
            yield Problem(str(name), "is of a deployment of one model, and models are said too", would_do)
    if models in (None, {}):
        yield Problem("models", "has no model", "say `NAME: {path: …, aggregated: {}}` below it, or model")
    yield from _names_differ(tree)


def _names_differ(tree: dict[str, Any]) -> Iterator[Problem]:
    texts = [text for text in model_texts(tree) if len(text.keys) > 1]
    named: dict[Any, str] = {}
    for text in texts:
        name = text.section.get("name") or text.keys[-1]
        if isinstance(name, str) and named.setdefault(name, text.path) != text.path:
            yield Problem(f"{text.path}.name", f"{name!r} is what clients call {named[name]} too", "take another")
    pools: dict[str, str] = {}
    for text in texts:
        lora = text.section.get("lora")
        adapters = lora.get("adapters") if isinstance(lora, dict) else None
        for adapter in adapters if isinstance(adapters, dict) else ():
            if named.get(adapter, text.path) != text.path:
                what = f"is the name of the model {named[adapter]}"
                yield Problem(f"{text.path}.lora.adapters.{adapter}", what, "give it another name")
        for path, pool in _pools(text):
            name = pool.get("name")
            if isinstance(name, str) and pools.setdefault(name, text.path) != text.path:
                what = f"{name!r} is the name of a pool of {pools[name]} too"
                yield Problem(f"{path}.name", what, "give each pool its own")


def _pools(text: ModelText) -> Iterator[tuple[str, dict[str, Any]]]:
    for role in ROLES:
        said = text.section.get(role)
        for index, pool in enumerate(said if isinstance(said, list) else [said]):
            if isinstance(pool, dict):
                yield f"{text.path}.{role}" + (f".{index}" if isinstance(said, list) else ""), pool
