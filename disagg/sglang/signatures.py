"""Reads out of Python source what a function takes and what a class has, without importing or parsing all of it.

Way:   a release's files, installed or out of its wheel -> [Sources.of] -> fit.py, tests/config/sglang_touched.py
In:    "package.module:Class.method", "package.module:function", "package.module:Class.attribute", "package.module:name"
Out:   "self, batch, result=, *, more=" for a function (`=`: has a default), NAME for anything else, "" where it is not
Why:   importing a release takes 10 s and its dependencies; parsing its files whole, a second at every engine's start
"""

from __future__ import annotations

import ast
import re
from functools import cached_property
from pathlib import Path

NAME = "name"
_NOT_INDENTED = re.compile(r"\n[^\s#)]")


class Sources:
    """`root`: the folder that holds the package."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._files: dict[str, _File] = {}

    def of(self, path: str) -> str:
        module, _, qualified = path.partition(":")
        if module not in self._files:
            self._files[module] = _File(self._text(module))
        return self._files[module].what_is(qualified)

    def _text(self, module: str) -> str:
        base = self._root.joinpath(*module.split("."))
        for path in (base.with_suffix(".py"), base / "__init__.py"):
            if path.is_file():
                return path.read_text(encoding="utf-8")
        return ""


class _File:
    def __init__(self, text: str) -> None:
        self._text = "\n" + text if text else ""

    @cached_property
    def _classes(self) -> dict[str, str]:
        """Name -> its source: from its line to the next one that is not indented."""
        found = {}
        for begin in re.finditer(r"\nclass (\w+)", self._text):
            end = _NOT_INDENTED.search(self._text, self._text.index("\n", begin.end()))
            found[begin[1]] = self._text[begin.start() : end.start() if end else len(self._text)]
        return found

    def what_is(self, qualified: str) -> str:
        if not self._text:
            return ""
        owner, _, name = qualified.rpartition(".")
        if not owner:
            return _function(self._text, name, "") or (
                NAME if name in self._classes else _top_level_name(self._text, name)
            )
        text = self._classes.get(owner, "")
        return _function(text, name, "    ") or _attribute(text, name)


def _function(text: str, name: str, indent: str) -> str:
    begins = (text.find(f"\n{indent}{kind}def {name}(") for kind in ("", "async "))
    begin = next((at for at in begins if at >= 0), -1)
    if begin < 0:
        return ""
    depth, first = 1, text.index("(", begin) + 1
    at = first
    while depth and at < len(text):
        if text[at] == "#":  # a bracket in a remark does not count
            at = text.find("\n", at)
        depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(text[at], 0)
        at += 1
    (function,) = ast.parse(f"def function({text[first:at]}: ...").body
    assert isinstance(function, ast.FunctionDef)
    return _told(function.args) or NAME


def _told(args: ast.arguments) -> str:
    """Without annotations, the values of defaults, and the mark of positional parameters."""
    nothing = ast.Name("")
    args.args, args.posonlyargs = [*args.posonlyargs, *args.args], []
    args.defaults = [nothing for _ in args.defaults]
    args.kw_defaults = [default and nothing for default in args.kw_defaults]
    for each in ast.walk(args):
        if isinstance(each, ast.arg):
            each.annotation = None
    return ast.unparse(args)


def _attribute(text: str, name: str) -> str:
    """Of a class: assigned to self, or declared in its body. Patterns that begin with plain text are quick."""
    word = re.escape(name)
    patterns = (rf"self\.{word}\b\s*(?::[^=\n]+)?[=,]", rf"\n    {word}\s*[:=]")
    return NAME if any(re.search(pattern, text) for pattern in patterns) else ""


def _top_level_name(text: str, name: str) -> str:
    word = re.escape(name)
    patterns = (rf"\n{word}\s*[:=]", rf"\n    {word},\n", rf"\n(?:from|import)\b[^\n]*\b{word}\b")
    return NAME if any(re.search(pattern, text) for pattern in patterns) else ""
