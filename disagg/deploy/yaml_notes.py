"""A plain tree as YAML to be read: keys in their order, long text as blocks, comments where there are some."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

WIDTH = 4096  # no folded lines: a command stays on one


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)  # a list is indented below its key


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def with_notes(tree: Mapping[str, Any], notes: Mapping[str, str]) -> str:
    """`notes`: the beginning of a line -> what is said above the first line that begins so."""
    waiting = dict(notes)
    lines: list[str] = []
    for line in yaml.dump(tree, Dumper=_Dumper, sort_keys=False, width=WIDTH).splitlines():
        bare = line.lstrip()
        for start in [start for start in waiting if bare.startswith(start)]:
            indent = line[: len(line) - len(bare)]
            lines += [f"{indent}# {each}" for each in waiting.pop(start).splitlines()]
        lines.append(line)
    return "\n".join(lines) + "\n"
