"""A configuration that came from an operator's machine, completed with what does not travel: keys, passwords, the name.

Way:   Apply.config -> [read_over] -> keeper.py
Fails: ConfigError with every problem
"""

from __future__ import annotations

from disagg.config.schema import Deployment
from disagg.config.secrets import over, spelt
from disagg.config.yaml_text import read_tree
from disagg.errors import ConfigError, Problem
from disagg.load import parse_tree

SOURCE = "configuration"


def read_over(text: str, now: Deployment) -> Deployment:
    """What `text` says. Secrets are those of `now`, and so is the name where none is said."""
    tree, problems = read_tree(text, SOURCE)
    if not isinstance(tree, dict):
        problems = problems or [Problem(SOURCE, "is not a mapping of keys", "start with `version: 1`")]
    if problems:
        raise ConfigError(SOURCE, tuple(problems))
    if tree.get("name") is None:
        tree["name"] = now.name
    return parse_tree(over(tree, spelt(now)), SOURCE)
