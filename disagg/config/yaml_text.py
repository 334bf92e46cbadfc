"""YAML text to a plain tree. Duplicate keys are reported, and errors name their line.

Way:   file -> [tree] -> overrides -> Deployment
Fails: ConfigError for a file that cannot be read. Nothing for bad text: its problems come back beside what could
       be read
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from disagg.errors import ConfigError, Problem

TEXT_BYTES_MAX = 1 << 20
NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
QUOTE = "quote the text you mean"


def read_tree(text: str, source: str, *, is_secret: bool = False) -> tuple[Any, list[Problem]]:
    """The tree (None when there is none) and what is wrong with the text. `source` names it in paths: FILE:LINE.
    `is_secret`: of what is no YAML the place alone is told, as PyYAML's words quote aliases, anchors and tags."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        problems = [] if root is None else list(_lost(root, "", source, set()))
        return yaml.safe_load(text), problems
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = f"{source}:{mark.line + 1}:{mark.column + 1}" if mark else source
        what = "" if is_secret else ": " + ", ".join(filter(None, (error.context, error.problem)))
        return None, [Problem(at, f"not YAML{what}", "check quotes, colons and indentation around that place")]
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # ValueError: a timestamp such as 2026-13-45
        return None, [Problem(source, f"not YAML: {' '.join(str(error).split())}", "save it as plain UTF-8 YAML")]


def read_value(text: str) -> Any:
    """The value of `--set key=TEXT`, read as YAML; raises yaml.YAMLError or ValueError."""
    return yaml.safe_load(text)


NotYaml = (yaml.YAMLError, RecursionError, ValueError)  # what read_value raises


def read_file(path: Path, look: Callable[[int], None] = lambda _: None) -> str:
    """`look`: at the file's descriptor, before it is read; it may raise OSError, and ConfigError."""
    try:
        with path.open("rb") as file:
            look(file.fileno())
            raw = file.read(TEXT_BYTES_MAX + 1)
        if len(raw) > TEXT_BYTES_MAX:
            raise ConfigError(str(path), (Problem(str(path), "is over 1 MiB", "name a YAML file"),))
        return raw.decode()
    except OSError as error:
        what = f"cannot be read: {error.strerror or error}"
        raise ConfigError(str(path), (Problem(str(path), what, "name a YAML file"),)) from None
    except UnicodeDecodeError as error:
        what = f"is not UTF-8 (byte {error.start})"
        raise ConfigError(str(path), (Problem(str(path), what, "save it as UTF-8 YAML"),)) from None


def misread(text: str, value: Any) -> str:
    """What is wrong with `value` where its text is meant, as below `env`: 010 is 8 to YAML, 1.50 is 1.5. Else empty."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return f"YAML reads {text} as {value}" if is_number and str(value) != text else ""


def _lost(node: yaml.Node, path: str, source: str, seen: set[int]) -> Iterator[Problem]:
    """Problems that the plain tree does not show: duplicate keys, and texts below `env` that YAML reads as other
    numbers."""
    if id(node) in seen:  # an alias: its anchor was looked at
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _lost(item, _below(path, index), source, seen)
    elif isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            line, here = key.start_mark.line + 1, _below(path, key.value)
            if isinstance(key, yaml.ScalarNode) and key.value in lines:
                what = f"said twice, in lines {lines[key.value]} and {line} of {source}"
                yield Problem(here, what, "YAML would silently take the last; keep one")
            if isinstance(key, yaml.ScalarNode):
                lines[key.value] = line
            is_of_env = path.endswith(".env") and value.tag in NUMBERS and value.style is None
            if is_of_env and (what := misread(value.value, read_value(value.value))):
                yield Problem(here, what, QUOTE)
            yield from _lost(value, here, source, seen)


def _below(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)
