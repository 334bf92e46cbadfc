"""The door of the configuration: a file and `--set`s in, a Deployment out, or every problem at once.

Way:   [file -> tree -> what it extends -> overrides -> environment -> schema + rules + SGLang's arguments]
       -> Deployment -> plan
Fails: ConfigError. Nothing has been started, and SGLang and Ray are not imported
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from disagg.config.chat_template import with_template_text
from disagg.config.engine_arguments import as_meant, check_arguments
from disagg.config.environment_values import fill_environment
from disagg.config.extends import Layer, layers_of, merged, said_where
from disagg.config.lora import with_adapters
from disagg.config.model_texts import model_texts
from disagg.config.overrides import apply_sets
from disagg.config.parts import Part, parts_of
from disagg.config.parts import problems as between_models
from disagg.config.rules import check_rules, pool_texts
from disagg.config.schema import Deployment, spelled
from disagg.config.secrets import are_in, variables, without
from disagg.config.simulated import check_simulated
from disagg.config.validation_errors import problems_of
from disagg.config.yaml_text import read_file, read_tree
from disagg.errors import ConfigError, Problem
from disagg.preflight.api import check_text
from disagg.role_table import ROLES
from disagg.sglang.releases import installed_release


def load_config(path: Path, sets: Sequence[str] = ()) -> Deployment:
    """The deployment that the YAML file at `path` describes, with `sets` (path.to.key=value) on top."""
    return parse_config(read_file(path), sets, source=str(path), file=path)


def parse_config(
    text: str, sets: Sequence[str] = (), source: str = "configuration", file: Path | None = None
) -> Deployment:
    """`file` is where `text` comes from: what it extends lies beside it, and it names the deployment."""
    tree, layers, problems = _whole(text, sets, source, file)
    if file is not None and tree.get("name") is None:
        tree["name"] = _label(file.stem)
    return _checked(tree, layers, problems, source)


def parse_tree(tree: dict[str, Any], source: str) -> Deployment:
    """The deployment that a tree of `sent_tree` describes. Raises ConfigError."""
    return _checked(tree, [Layer(source, tree)], [], source)


def sent_tree(path: Path, sets: Sequence[str] = ()) -> tuple[dict[str, Any], bool]:
    """(what load_config takes as one tree that needs nothing of this machine, whether secrets were taken out of it).
    Raises ConfigError. The variables that hold the secrets need not be set here."""
    text, source = read_file(path), str(path)
    tree, layers, problems = _whole(text, sets, source, path, with_secrets=False)
    unsaid: dict[str, Any] = {} if tree.get("name") is not None else {"name": _label(path.stem)}
    _checked(tree | unsaid, layers, problems, source)
    said, _ = apply_sets(merged(layers), sets)
    return without(tree), are_in(said)


def secret_variables(path: Path, sets: Sequence[str] = ()) -> frozenset[str]:
    """The environment variables that the secrets of what load_config takes come from: nothing that is started needs
    them. Raises ConfigError."""
    source = str(path)
    tree, _ = read_tree(read_file(path), source)
    layers, _ = layers_of(tree, source, path)
    said, _ = apply_sets(merged(layers), sets)
    return variables(said)


def _checked(tree: dict[str, Any], layers: list[Layer], problems: list[Problem], source: str) -> Deployment:
    tree = _with_page_size(tree)
    deployment = None
    try:
        deployment = Deployment.model_validate(tree)
    except ValidationError as error:
        problems += problems_of(error, tree)
    problems += between_models(tree)
    for part in parts_of(tree):
        problems += map(part.told, _of_one_model(part))
    if problems or deployment is None:
        raise ConfigError(source, tuple(dict.fromkeys(said_where(problem, layers) for problem in problems)))
    return deployment


def _of_one_model(part: Part) -> list[Problem]:
    tree, pools = part.tree, pool_texts(part.tree, part.key)
    is_simulated = tree.get("device") == "simulated"
    sglang = None if is_simulated else installed_release()
    meant = as_meant(pools, sglang)
    of_engines = check_simulated(pools) if is_simulated else check_arguments(pools, sglang)[0]
    return [*check_rules(tree, meant, part.key), *check_text(tree, meant), *of_engines]


def shipped_text(path: Path, sets: Sequence[str] = ()) -> tuple[str, tuple[str, ...]]:
    """(text, sets) that mean the same on another machine; takes what load_config takes, and raises ConfigError like it.

    The file's text and `sets` are returned unchanged where they need nothing of this machine. Otherwise the text is one
    tree into which the extended files, the sets and the environment's values were merged, and no sets are left."""
    text = read_file(path)
    whole, _, _ = _whole(text, sets, str(path), path)
    alone, _ = apply_sets(read_tree(text, str(path))[0], sets)
    return (text, tuple(sets)) if whole == alone else (yaml.safe_dump(whole, sort_keys=False), ())


def _whole(
    text: str, sets: Sequence[str], source: str, file: Path | None, *, with_secrets: bool = True
) -> tuple[dict[str, Any], list[Layer], list[Problem]]:
    """(the merged tree, the files that it came from, their problems). Raises ConfigError where there is no tree at
    all. Without its secrets a password is a stand-in, as a user must have one."""
    tree, problems = read_tree(text, source)
    if tree is None and not problems:
        problems = [Problem(source, "is empty", "start from one of the shipped configs, such as local-cpu.yaml")]
    elif tree is not None and not isinstance(tree, dict):
        what = f"is a {type(tree).__name__}, not a mapping of keys"
        problems.append(Problem(source, what, "start with `version: 1`"))
    if not isinstance(tree, dict):
        raise ConfigError(source, tuple(problems))
    layers, of_chain = layers_of(tree, source, file)
    if of_chain:  # what the rest would have said cannot be told from what is missing
        raise ConfigError(source, (*problems, *of_chain))
    tree, of_sets = apply_sets(merged(layers), sets)
    if not with_secrets:
        tree = without(tree)
        if isinstance(registry := tree.get("registry"), dict) and registry.get("user") is not None:
            tree["registry"] = registry | {"password": "left out"}
    tree, of_environment = fill_environment(tree, os.environ)
    tree, of_template = with_template_text(tree, layers, file)
    tree, of_adapters = with_adapters(tree, layers, file)
    return tree, layers, [*problems, *of_sets, *of_environment, *of_template, *of_adapters]


def _label(stem: str) -> str:
    """A file's name as a deployment's."""
    return re.sub("[^a-z0-9]+", "-", stem.lower()).strip("-")[:63].strip("-") or "disagg"


def _with_page_size(tree: dict[str, Any]) -> dict[str, Any]:
    """Puts transfer.page_size into each pool that hands KV over and has no page size of its own."""
    transfer = tree.get("transfer")
    size = transfer.get("page_size") if isinstance(transfer, dict) else None
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        return tree
    for text in model_texts(tree):
        if text.keys[0] == "models":
            tree = text.put(tree, _with_size(text.section, size))
    return _with_size(tree, size)


def _with_size(tree: dict[str, Any], size: int) -> dict[str, Any]:
    pools = {role: _each(tree[role], size) for role in ROLES if ROLES[role].partner and tree.get(role) is not None}
    return tree | pools


def _each(pools: Any, size: int) -> Any:
    if isinstance(pools, list):
        return [_each({} if pool is None else pool, size) for pool in pools]
    engine = pools.get("engine") if isinstance(pools, dict) else None
    if not isinstance(pools, dict) or not isinstance(engine, dict | None):
        return pools
    if "page_size" in map(spelled, engine or {}):
        return pools
    return pools | {"engine": {"page_size": size, **(engine or {})}}
