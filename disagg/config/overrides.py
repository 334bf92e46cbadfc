"""`--set path.to.key=value` on the tree, before anything is checked, so that its mistakes are told like the file's.

Way:   file -> tree -> [overrides] -> Deployment
Out:   a new tree; the one passed in is left as it was

A role may be one pool or a list. `prefill.0.engine.x` names one pool, `prefill.engine.x` all pools of the role;
of one of several models, `models.NAME.prefill.0.engine.x`.
Every mapping on the way to a value is copied first: YAML's `*engine` makes two pools hold the very same mapping.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

from disagg.config.schema import spelled
from disagg.config.yaml_text import QUOTE, NotYaml, misread, read_value
from disagg.errors import Problem
from disagg.role_table import ROLES

HOW = "write --set path.to.key=value, as in --set frontend.port=8001"


def apply_sets(tree: dict[str, Any], sets: Sequence[str]) -> tuple[dict[str, Any], list[Problem]]:
    """Later ones win. An override that cannot be applied is a problem and changes nothing."""
    tree = copy.copy(tree)
    problems: list[Problem] = []
    for text in sets:
        path, equals, value_text = text.partition("=")
        keys = path.strip().split(".")
        if not equals or not all(keys):
            problems.append(Problem(f"--set {text}", "no path and value in it", HOW))
            continue
        try:
            value = read_value(value_text)
        except NotYaml as error:
            reason = " ".join(str(error).split())
            problems.append(Problem(f"--set {path}", f"{value_text!r} is not YAML: {reason}", "quote the value"))
            continue
        if keys[-2:-1] == ["env"] and (what := misread(value_text, value)):
            problems.append(Problem(f"--set {path}", what, QUOTE))
            continue
        problems += _set(tree, keys, value, f"--set {path}")
    return tree, problems


def _set(tree: dict[str, Any], keys: list[str], value: Any, where: str) -> Iterable[Problem]:
    head, *rest = keys
    models = tree.get("models")
    if head == "models" and len(rest) > 1 and isinstance(models, dict) and isinstance(models.get(rest[0]), dict):
        of_model = copy.copy(models[rest[0]])
        tree["models"] = {**models, rest[0]: of_model}
        return _set(of_model, rest[1:], value, where)
    if head not in ROLES or not rest:
        return _set_below(tree, keys, value, where, "the configuration")
    pools = tree.setdefault(head, {})
    if pools is None:
        pools = tree[head] = {}
    if not isinstance(pools, dict | list):
        return [Problem(where, f"{head} is {pools!r}, neither a pool nor a list of pools", f"mend {head} first")]
    pools = tree[head] = copy.copy(pools)
    many = pools if isinstance(pools, list) else [pools]
    if not rest[0].isdecimal():
        chosen = list(enumerate(many))
    elif int(rest[0]) < len(many):
        chosen = [(int(rest[0]), many[int(rest[0])])]
        rest = rest[1:]
    else:
        count = f"{head} has {len(many)} pool{'' if len(many) == 1 else 's'}"
        return [Problem(where, f"{count}, and they count from 0", f"use an index below {len(many)}")]
    if not rest:
        return [Problem(where, "replaces a whole pool", "name a key below it, such as replicas or engine.page_size")]
    problems: list[Problem] = []
    for index, pool in chosen:
        if isinstance(pools, list):
            pool = pools[index] = {} if pool is None else copy.copy(pool)
        problems += _set_below(pool, rest, copy.deepcopy(value), where, f"{head}.{index}")
    return problems


def _set_below(tree: Any, keys: list[str], value: Any, where: str, name: str) -> list[Problem]:
    *parents, last = keys
    for key in parents:
        if not isinstance(tree, dict):
            return [_not_a_mapping(where, name, tree)]
        child = tree.get(key)
        tree[key] = {} if child is None else copy.copy(child)
        tree, name = tree[key], key
    if not isinstance(tree, dict):
        return [_not_a_mapping(where, name, tree)]
    if parents and parents[-1] == "engine":  # page-size in the file, page_size here: one argument
        for said in [said for said in tree if spelled(said) == spelled(last)]:
            del tree[said]
    tree[last] = value
    return []


def _not_a_mapping(where: str, name: str, tree: Any) -> Problem:
    return Problem(where, f"{name} is {tree!r} and has no keys below it", "shorten the path, or mend the file")
