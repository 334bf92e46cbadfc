"""The arguments of the installed SGLang, read from its source and not by importing it (10 s and more, or not there).

Way:   sglang's source -> [names, types, choices] -> sglang_arguments.py checks pools against them
In:    the folder of an sglang package. Two shapes are understood, and a mixture: a class ServerArgs with annotated
       fields, its bases followed (0.5.16); and classes of fields joined by `collect_input_fields` (0.5.20)
Out:   name -> Argument. A type that is not plain is left unchecked: SGLang is the judge of it
"""

from __future__ import annotations

import ast
import functools
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from disagg.installed import installed_version

ENTRY = "srt/server_args.py"
PLAIN = {"int", "float", "bool", "str", "list", "dict"}
GENERICS = {"List": "list", "Dict": "dict", "Sequence": "list", "Tuple": "list", "tuple": "list"}
ANNOTATED = {"A", "Annotated"}
COLLECTOR = "collect_input_fields"


@dataclass(frozen=True, slots=True)
class Argument:
    types: frozenset[str] | None  # of PLAIN, and "None"; None: anything goes
    choices: tuple[object, ...] | None
    choices_open: bool = False  # a list that SGLang's plugins may add to
    aliases: tuple[str, ...] = ()  # other names on SGLang's command line


@dataclass(frozen=True, slots=True)
class ServerArgs:
    version: str
    arguments: dict[str, Argument]


@functools.cache
def installed_server_args() -> ServerArgs | None:
    """Of the SGLang that this Python would import; None where there is none, or its source tells nothing."""
    spec = importlib.util.find_spec("sglang")
    if spec is None or not spec.submodule_search_locations:
        return None
    version = installed_version("sglang") or "(of unknown version)"
    arguments = read_arguments(Path(next(iter(spec.submodule_search_locations))))
    return ServerArgs(version, arguments) if arguments else None


def read_arguments(package: Path) -> dict[str, Argument]:
    """`package` is the folder of the package sglang. Empty when its ServerArgs has a shape unknown to us."""
    sources = _Sources(package)
    entry = sources.module(ENTRY)
    if entry is None:
        return {}
    found: dict[str, Argument] = {}
    names = ["ServerArgs", *_collected_names(entry)]
    for name in names:
        for module, node in sources.class_with_bases(entry, name):
            for field in _fields(node):
                argument = _argument(field, module, sources)
                found.setdefault(field.target.id, argument)  # type: ignore[union-attr]  # _fields yields Names only
    return found


class _Module:
    """One parsed file: what it defines at its top level and what it imports from where."""

    def __init__(self, path: str, tree: ast.Module) -> None:
        self.path = path
        self.tree = tree
        self.classes: dict[str, ast.ClassDef] = {}
        self.values: dict[str, ast.expr] = {}
        self.imports: dict[str, tuple[ast.ImportFrom, str]] = {}
        for node in tree.body:
            match node:
                case ast.ClassDef():
                    self.classes.setdefault(node.name, node)
                case ast.Assign(targets=[ast.Name(id=name)], value=value):
                    self.values.setdefault(name, value)
                case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                    self.values.setdefault(name, value)
                case ast.ImportFrom():
                    self.imports |= {alias.asname or alias.name: (node, alias.name) for alias in node.names}


class _Sources:
    """The package's files, each parsed once."""

    def __init__(self, package: Path) -> None:
        self._package = package
        self._modules: dict[str, _Module | None] = {}

    def module(self, path: str) -> _Module | None:
        if path not in self._modules:
            try:
                tree = ast.parse((self._package / path).read_bytes())
            except (OSError, SyntaxError):
                self._modules[path] = None
            else:
                self._modules[path] = _Module(path, tree)
        return self._modules[path]

    def class_with_bases(self, module: _Module, name: str) -> Iterator[tuple[_Module, ast.ClassDef]]:
        home, name = self.home(module, name)
        if home is None or name not in home.classes:
            return
        node = home.classes[name]
        yield home, node
        for base in node.bases:
            if isinstance(base, ast.Name) and base.id != name:
                yield from self.class_with_bases(home, base.id)

    def home(self, module: _Module, name: str) -> tuple[_Module | None, str]:
        """Where a name is defined, following `from … import …` within the package, re-exports too."""
        seen: set[tuple[str, str]] = set()
        here: _Module | None = module
        while here and name not in here.classes and name not in here.values and name in here.imports:
            if (here.path, name) in seen:
                return None, name
            seen.add((here.path, name))
            statement, name = here.imports[name]
            here = self._imported(here, statement)
        return here, name

    def _imported(self, module: _Module, statement: ast.ImportFrom) -> _Module | None:
        parts = (statement.module or "").split(".")
        if statement.level:
            folder = module.path.split("/")[: -statement.level]
            parts = [*folder, *filter(None, parts)]
        elif parts[0] == "sglang":
            parts = parts[1:]
        else:
            return None
        stem = "/".join(parts)
        return self.module(f"{stem}.py") or self.module(f"{stem}/__init__.py")


def _collected_names(entry: _Module) -> list[str]:
    """The classes named in `collect_input_fields([...])`, or in the list it is given by name."""
    for node in ast.walk(entry.tree):
        match node:
            case ast.Call(func=ast.Name(id=name), args=[given, *_]) if name == COLLECTOR:
                listed = entry.values.get(given.id) if isinstance(given, ast.Name) else given
                if isinstance(listed, ast.List | ast.Tuple):
                    return [item.id for item in listed.elts if isinstance(item, ast.Name)]
    return []


def _fields(node: ast.ClassDef) -> Iterator[ast.AnnAssign]:
    for statement in node.body:
        match statement:
            case ast.AnnAssign(target=ast.Name(id=name)) if not name.startswith("_"):
                if _head(statement.annotation) != "ClassVar":
                    yield statement


def _argument(field: ast.AnnAssign, module: _Module, sources: _Sources) -> Argument:
    annotation, notes = field.annotation, list[ast.expr]()
    match annotation:
        case ast.Subscript(slice=ast.Tuple(elts=[first, *rest])) if _head(annotation) in ANNOTATED:
            annotation, notes = first, rest
    types, literals = _types(annotation)
    if types is not None and isinstance(field.value, ast.Constant) and field.value.value is None:
        types |= {"None"}
    marks = {mark.arg: mark.value for note in notes if isinstance(note, ast.Call) for mark in note.keywords if mark.arg}
    if types is not None and _is_json(marks.get("type_parser")):
        # Its text is parsed, so a keyword argument is the mapping itself: preferred_sampling_params says str, and lies.
        types = (types - {"str"}) | {"dict"}
    aliases = _literal_list(marks.get("aliases"), module, sources) or ()
    shown = tuple(str(alias).lstrip("-").replace("-", "_") for alias in (*_constant(marks.get("cli_name")), *aliases))
    if literals:
        return Argument(types, literals, aliases=shown)
    given = marks.get("choices")
    return Argument(types, _literal_list(given, module, sources), isinstance(given, ast.Name), shown)


def _types(annotation: ast.expr) -> tuple[frozenset[str] | None, tuple[object, ...] | None]:
    """The plain types and, of a Literal, the values."""
    match annotation:
        case ast.Constant(value=None):
            return frozenset({"None"}), None
        case ast.Constant(value=str(text)):
            return _types(ast.parse(text, mode="eval").body)
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _union([left, right])
        case ast.Subscript(slice=inner):
            head = _head(annotation)
            parts = inner.elts if isinstance(inner, ast.Tuple) else [inner]
            if head == "Literal":
                values = tuple(part.value for part in parts if isinstance(part, ast.Constant))
                return frozenset(type(value).__name__.replace("NoneType", "None") for value in values), values
            if head == "Optional":
                return _union([*parts, ast.Constant(None)])
            if head == "Union":
                return _union(parts)
    head = GENERICS.get(_head(annotation), _head(annotation))
    return (frozenset({head}), None) if head in PLAIN else (None, None)


def _union(parts: list[ast.expr]) -> tuple[frozenset[str] | None, tuple[object, ...] | None]:
    """Of a Literal beside another open type the values say nothing; beside None they do."""
    types: set[str] = set()
    values: tuple[object, ...] | None = None
    bare: set[str] = set()
    for part in parts:
        part_types, part_values = _types(part)
        if part_types is None:
            return None, None
        types |= part_types
        if part_values:
            values = (*(values or ()), *part_values)
        else:
            bare |= part_types
    return frozenset(types), values if bare <= {"None"} else None


def _is_json(parser: ast.expr | None) -> bool:
    return isinstance(parser, ast.Attribute) and parser.attr == "loads"


def _constant(node: ast.expr | None) -> tuple[object, ...]:
    return (node.value,) if isinstance(node, ast.Constant) else ()


def _head(annotation: ast.expr) -> str:
    match annotation:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case ast.Subscript(value=value):
            return _head(value)
    return ""


def _literal_list(node: ast.expr | None, module: _Module, sources: _Sources) -> tuple[object, ...] | None:
    if isinstance(node, ast.Name):
        home, name = sources.home(module, node.id)
        return _literal_list(home.values[name], home, sources) if home and name in home.values else None
    if isinstance(node, ast.List | ast.Tuple) and all(isinstance(item, ast.Constant) for item in node.elts):
        return tuple(item.value for item in node.elts if isinstance(item, ast.Constant))
    return None
