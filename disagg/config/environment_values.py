"""`${env:NAME}` and `${env:NAME:-default}` in the values of a configuration.

Way:   tree + overrides -> [environment values] -> Deployment
Out:   a new tree. A value that consists of one reference alone is read as YAML, as --set's is, so that a port is a
       number. Inside a longer text, below `env`, and where the schema wants text, a reference is text
Fails: never by itself: a variable that is not set is a Problem with the value's path
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from disagg.config.validation_errors import is_text, shown
from disagg.config.yaml_text import NotYaml, read_value
from disagg.errors import Problem

REFERENCE = re.compile(r"\$\{env:([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")
HOW = "write ${env:NAME}, or ${env:NAME:-default}"


def fill_environment(tree: dict[str, Any], environ: Mapping[str, str]) -> tuple[dict[str, Any], list[Problem]]:
    filling = _Filling(environ)
    return filling.fill(tree, "", text=False), filling.problems


def names_in(value: Any) -> Iterator[str]:
    """The variables that a value, as a file says it, refers to."""
    if isinstance(value, str):
        yield from (found[1] for found in REFERENCE.finditer(value))
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from names_in(each)


class _Filling:
    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        # YAML aliases: one mapping may stand in many places, and in itself
        self._done: dict[tuple[int, bool], Any] = {}
        self.problems: list[Problem] = []

    def fill(self, value: Any, path: str, *, text: bool) -> Any:
        if isinstance(value, str):
            return self._filled(value, path, text=text) if "${env:" in value else value
        if not isinstance(value, dict | list):
            return value
        if (done := self._done.get((id(value), text))) is not None:
            return done
        if isinstance(value, dict):
            mapping = self._done[id(value), text] = {}
            for key, below in value.items():
                at = f"{path}.{key}" if path else str(key)
                mapping[key] = self.fill(below, at, text=text or key == "env")
            return mapping
        items = self._done[id(value), text] = []
        items += [self.fill(below, f"{path}.{index}", text=text) for index, below in enumerate(value)]
        return items

    def _filled(self, value: str, path: str, *, text: bool) -> Any:
        left = REFERENCE.sub(lambda found: self._looked_up(found, path), value)
        if "${env:" in REFERENCE.sub("", value):
            self.problems.append(Problem(path, f"has a reference that cannot be read, in {shown(value)}", HOW))
            return value
        if text or not REFERENCE.fullmatch(value):
            return left
        try:
            read = read_value(left)
        except NotYaml:
            return left
        return left if read is not None and is_text(path) else read

    def _looked_up(self, found: re.Match[str], path: str) -> str:
        name, default = found[1], found[2]
        said = self._environ.get(name)
        if said is None and default is None:
            would_do = f"set {name}, or say ${{env:{name}:-default}}"
            self.problems.append(Problem(path, f"names the environment variable {name}, which is not set", would_do))
        return said or default or ""
