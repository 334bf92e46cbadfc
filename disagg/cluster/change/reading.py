"""A configuration that came from an operator's machine, completed with what does not travel: keys, passwords, the name.

Way:   Apply.config -> [read_over] -> keeper.py
In:    text of a program's, too, not of `disagg apply` alone: what `disagg serve` would read in another way is refused
Fails: ConfigError with every problem
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from disagg.config.chat_template import TEMPLATE_TAGS
from disagg.config.model_texts import model_texts
from disagg.config.schema import Deployment
from disagg.config.secrets import over, spelt
from disagg.config.yaml_text import read_tree
from disagg.errors import ConfigError, Problem
from disagg.load import parse_tree
from disagg.registry.orders import CONFIG_BYTES_MAX

SOURCE = "configuration"
WHOLE = "send it as `disagg apply` does: in one piece, which needs nothing of the machine that it comes from"
Read = Callable[[str, Deployment], Awaitable[Deployment]]


async def read_apart(text: str, now: Deployment) -> Deployment:
    """`read_over` in a thread: a long text takes seconds, in which nobody else would be answered."""
    return await asyncio.to_thread(read_over, text, now)


def read_over(text: str, now: Deployment) -> Deployment:
    """What `text` says. Secrets are those of `now`, and so is the name where none is said."""
    if len(text.encode()) > CONFIG_BYTES_MAX:
        raise ConfigError(SOURCE, (Problem(SOURCE, f"is over {CONFIG_BYTES_MAX >> 20} MiB", "say less in it"),))
    tree, problems = read_tree(text, SOURCE)
    if not isinstance(tree, dict):
        problems = problems or [Problem(SOURCE, "is not a mapping of keys", "start with `version: 1`")]
    problems = problems or list(_not_whole(tree))
    if problems:
        raise ConfigError(SOURCE, tuple(problems))
    if tree.get("name") is None:
        tree["name"] = now.name
    return parse_tree(over(tree, spelt(now)), SOURCE)


def _not_whole(tree: dict[str, Any]) -> Iterator[Problem]:
    """What a file may say, and means nothing here."""
    if "extends" in tree:
        yield Problem("extends", "names a file of another machine", WHOLE)
    for text in model_texts(tree):
        said = text.section.get("chat_template")
        if isinstance(said, str) and not any(tag in said for tag in TEMPLATE_TAGS):
            yield Problem(f"{text.path}.chat_template", "is no template: it has no {{ and no {%", WHOLE)
    for path in _references(tree, "", set()):
        yield Problem(path, "names an environment variable of another machine", WHOLE)


def _references(value: Any, path: str, seen: set[int]) -> Iterator[str]:
    """The paths of what has `${env:` in it. `seen`: a mapping of YAML may stand in itself."""
    if isinstance(value, str) and "${env:" in value:
        yield path
    if not isinstance(value, dict | list) or id(value) in seen:
        return
    seen.add(id(value))
    for key, below in value.items() if isinstance(value, dict) else enumerate(value):
        yield from _references(below, f"{path}.{key}" if path else str(key), seen)
