"""The door of the configuration: a file and `--set`s in, a Deployment out, or every problem at once.

Way:   [file -> tree -> overrides -> schema + rules + SGLang's arguments] -> Deployment -> plan
Fails: ConfigError. Nothing has been started, and SGLang and Ray are not imported
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from disagg.config.overrides import apply_sets
from disagg.config.problems import problems_of
from disagg.config.rules import check_rules, pool_texts
from disagg.config.schema import Deployment
from disagg.config.server_args import installed_server_args
from disagg.config.sglang_arguments import check_arguments
from disagg.config.simulated import check_simulated
from disagg.config.yaml_text import read_file, read_tree
from disagg.errors import ConfigError, Problem


def load_config(path: Path, sets: Sequence[str] = ()) -> Deployment:
    """The deployment that the YAML file at `path` describes, with `sets` (path.to.key=value) on top."""
    return parse_config(read_file(path), sets, source=str(path))


def parse_config(text: str, sets: Sequence[str] = (), source: str = "configuration") -> Deployment:
    tree, problems = read_tree(text, source)
    if tree is None and not problems:
        problems = [Problem(source, "is empty", "start from one of the shipped configs, such as local-cpu.yaml")]
    elif tree is not None and not isinstance(tree, dict):
        what = f"is a {type(tree).__name__}, not a mapping of keys"
        problems.append(Problem(source, what, "start with `version: 1`"))
    if not isinstance(tree, dict):
        raise ConfigError(source, tuple(problems))
    tree, of_sets = apply_sets(tree, sets)
    problems += of_sets
    deployment, of_schema = _deployment(tree)
    problems += of_schema
    problems += check_rules(tree)
    if tree.get("device") == "simulated":
        problems += check_simulated(pool_texts(tree))
    else:
        problems += check_arguments(pool_texts(tree), installed_server_args())[0]
    if problems or deployment is None:
        raise ConfigError(source, tuple(dict.fromkeys(problems)))
    return deployment


def _deployment(tree: dict[str, Any]) -> tuple[Deployment | None, list[Problem]]:
    try:
        return Deployment.from_tree(tree), []
    except ValidationError as error:
        return None, problems_of(error, tree)
