"""What a reader of one definition is told: large classes say what they are, and who raises one of our errors says
which.

A public class over LONG_CLASS_LINES lines has a docstring. A public function whose body raises an error of
disagg/errors.py, or calls a function that always does, names that error: in its docstring, its class's, or on the
module's "Fails:" lines.
"""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
OURS = ("disagg", "prefill", "decode", "transfer")
LONG_CLASS_LINES = 60
Definition = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def modules() -> dict[str, ast.Module]:
    files = [file for top in OURS for file in sorted((ROOT / top).rglob("*.py")) if "standins" not in file.parts]
    return {str(file.relative_to(ROOT)): ast.parse(file.read_text(encoding="utf-8")) for file in files}


@cache
def our_errors() -> frozenset[str]:
    """Names of all error classes of ours, wherever they are defined."""
    bases = {
        each.name: {base.id for base in each.bases if isinstance(base, ast.Name)}
        for tree in modules().values()
        for each in tree.body
        if isinstance(each, ast.ClassDef)
    }
    found = {"DisaggError"}
    while more := {name for name, above in bases.items() if above & found} - found:
        found |= more
    return frozenset(found)


def bare_classes(tree: ast.Module) -> Iterator[str]:
    for each in _public(tree.body):
        if isinstance(each, ast.ClassDef):
            lines = (each.end_lineno or each.lineno) - each.lineno + 1
            if lines > LONG_CLASS_LINES and not ast.get_docstring(each):
                yield f"{each.name} ({lines} lines)"


def unsaid_errors(tree: ast.Module, errors: frozenset[str], through: dict[str, set[str]]) -> Iterator[str]:
    """`through`: the errors of each function that never returns, wherever it is defined."""
    head = ast.get_docstring(tree) or ""
    fails = re.search(r"^Fails:.*(?:\n {2,}.*)*", head, re.M)
    private = _errors_of_private_functions(tree, errors, through)
    for where, said, function in _public_functions(tree):
        told = f"{fails.group() if fails else ''} {said} {ast.get_docstring(function) or ''}"
        for name in sorted(_raised(function, errors, through | private)):
            if not re.search(rf"\b{name}\b", told):
                yield f"{where}{function.name} raises {name}"


@cache
def never_return() -> dict[str, set[str]]:
    """Public functions that always raise, such as `refuse`: name -> the errors of ours that they raise."""
    return {
        each.name: found
        for tree in modules().values()
        for each in tree.body
        if isinstance(each, Definition) and isinstance(each.returns, ast.Name) and each.returns.id == "NoReturn"
        if (found := _raised(each, our_errors(), {}))
    }


def _errors_of_private_functions(
    tree: ast.Module, errors: frozenset[str], through: dict[str, set[str]]
) -> dict[str, set[str]]:
    """Name -> errors, for the private functions and methods of this file; what one calls here it raises, too."""
    found: dict[str, set[str]] = {}
    definitions = [each for each in ast.walk(tree) if isinstance(each, Definition) and each.name.startswith("_")]
    while True:
        before = {name: set(raised) for name, raised in found.items()}
        for each in definitions:
            found.setdefault(each.name, set()).update(_raised(each, errors, through | found))
        if found == before:
            return found


def _public(body: list[ast.stmt]) -> Iterator[ast.ClassDef | Definition]:
    for each in body:
        if isinstance(each, ast.ClassDef | Definition) and not each.name.startswith("_"):
            yield each


def _public_functions(tree: ast.Module) -> Iterator[tuple[str, str, Definition]]:
    """(prefix of its name, docstring of its class, function)."""
    for each in _public(tree.body):
        if isinstance(each, ast.ClassDef):
            for inner in _public(each.body):
                if not isinstance(inner, ast.ClassDef):
                    yield f"{each.name}.", ast.get_docstring(each) or "", inner
        else:
            yield "", "", each


def _raised(function: Definition, errors: frozenset[str], through: dict[str, set[str]]) -> set[str]:
    """Names of the errors that leave a function: it raises them, or calls by name one that does.

    What stands in a `try` is taken as caught: which `except` catches what is not worked out here.
    """
    found: set[str] = set()
    todo: list[ast.AST] = list(function.body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Try):
            todo += [*node.handlers, *node.orelse, *node.finalbody]
            continue
        if isinstance(node, ast.Raise) and node.exc is not None:
            found |= {_name_of(node.exc)} & errors
        elif isinstance(node, ast.Call):
            name, is_own = _called(node)
            found |= through.get(name, set()) if name.startswith("_") or not is_own else set()
        todo += ast.iter_child_nodes(node)
    return found


def _name_of(raised: ast.expr) -> str:
    """X of `raise X`, `raise X(…)`, `raise X.of(…)`."""
    raised = raised.func if isinstance(raised, ast.Call) else raised
    while isinstance(raised, ast.Attribute):
        raised = raised.value
    return raised.id if isinstance(raised, ast.Name) else ""


def _called(call: ast.Call) -> tuple[str, bool]:
    """f of `f(…)` and of `self.f(…)`, and whether it is the latter."""
    if isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Name) and call.func.value.id == "self":
        return call.func.attr, True
    return (call.func.id, False) if isinstance(call.func, ast.Name) else ("", False)


def test_every_large_public_class_says_what_it_is() -> None:
    bare = [f"{file}: {name}" for file, tree in modules().items() for name in bare_classes(tree)]
    assert not bare, "\n".join(bare)


def test_every_public_function_that_raises_an_error_of_ours_names_it() -> None:
    errors = our_errors()
    assert len(errors) > 10
    assert not [name for name in errors if hasattr(builtins, name)]
    unsaid = [
        f"{file}: {text}" for file, tree in modules().items() for text in unsaid_errors(tree, errors, never_return())
    ]
    assert not unsaid, "\n".join(unsaid)


def test_a_bare_class_and_an_unsaid_error_are_found() -> None:
    tree = ast.parse('"""M.\n\nFails: BadError, as a\n       GoodError\n"""\nclass A:\n' + "    x = 1\n" * 60)
    assert list(bare_classes(tree)) == ["A (61 lines)"]
    tree.body += ast.parse(
        "def f():\n    raise BadError()\n"
        "def g():\n    '''Raises Three.'''\n    raise One.of(2) from 3\n"
        "def h():\n    _inner()\n"
        "def _inner():\n    refuse(1)\n"
        "def k():\n    try:\n        refuse(1)\n    except Two:\n        pass\n"
    ).body
    known = frozenset({"BadError", "One", "Two", "Three"})
    assert list(unsaid_errors(tree, known, {"refuse": {"Two"}})) == ["g raises One", "h raises Two"]
