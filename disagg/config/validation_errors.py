"""Pydantic's errors as Problems: the path as the YAML has it, what is wrong, what would do.

Way:   Deployment -> ValidationError -> [problems_of] -> ConfigError
"""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable, Iterator
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from disagg.config.frontend import KEY_NAME
from disagg.config.schema import DNS_LABEL, POOL_NAME, Deployment
from disagg.config.section import Remedy
from disagg.errors import Problem

NOUNS = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "dict_type": "a mapping of names to values",
    "model_type": "a mapping of names to values",
    "model_attributes_type": "a mapping of names to values",
    "tuple_type": "a pool or a list of pools",
    "bool_type": "true or false",
    "finite_number": "a finite number",
}
PATTERNS = {
    POOL_NAME: "letters, digits, - and _, 63 at most",
    DNS_LABEL: "small letters, digits and -, 63 at most",
    KEY_NAME: "letters, digits, dots, - and _, 64 at most",
}
BOUNDS = {"greater_than": "above", "greater_than_equal": "at least", "less_than": "below", "less_than_equal": "at most"}


def problems_of(error: ValidationError, tree: Any, root: type[BaseModel] = Deployment) -> list[Problem]:
    """`tree`: what was validated. It shows whether a role was written as one pool or as a list."""
    return [_problem(details, tree, root) for details in error.errors(include_url=False)]


def near_miss(word: str, words: Iterable[str]) -> str:
    """`did you mean X?`, or nothing when no word is near."""
    near = nearest_word(word, words)
    return f"did you mean {near}?" if near else ""


def nearest_word(word: str, words: Iterable[str]) -> str | None:
    words = sorted(words)
    same_letters = [known for known in words if _squash(known) == _squash(word)]  # pagesize, PageSize, page.size
    abbreviated = [known for known in words if known == f"{word}_size"]  # tp, dp: as SGLang's command line takes them
    close = same_letters or abbreviated or difflib.get_close_matches(word, words, n=1, cutoff=0.75)
    return close[0] if close else None


def is_text(path: str) -> bool:
    """Whether the schema wants text at this YAML path, and nothing but text."""
    field = _field_at(tuple(int(part) if part.isdecimal() else part for part in path.split(".")), Deployment)
    return field is not None and set(_plain_types(field.annotation)) in ({str}, {str, NoneType})


def shown(given: Any) -> str:
    """A value in a message: short, however large or self-containing it is."""
    return "empty" if given is None else f"the text {given!r:.80}" if isinstance(given, str) else reprlib.repr(given)


class _Hidden:
    def __repr__(self) -> str:
        return "(not shown)"


_NOT_SHOWN = _Hidden()


def _squash(word: str) -> str:
    return "".join(filter(str.isalnum, word.lower()))


def _problem(details: ErrorDetails, tree: Any, root: type[BaseModel]) -> Problem:
    location, kind, given = details["loc"], details["type"], details["input"]
    path, context = _yaml_path(location, tree), details.get("ctx", {})
    if location[:1] == ("security",):
        given = _NOT_SHOWN
    field = _field_at(location, root)
    if kind == "missing":
        example = "version: 1" if path == "version" else f"{location[-1]}: …"
        return Problem(path, "is missing", f"add `{example}`")
    if kind == "extra_forbidden":
        known = _keys_at(location[:-1], root)
        would_do = near_miss(str(location[-1]), known) or f"here go {', '.join(known)}"
        return Problem(path, "is not a known key", would_do)
    if kind == "invalid_key":
        return Problem(path, f"the key {given!r} is not text", "quote it")
    if kind == "value_error":
        what, _, would_do = str(context["error"]).partition("; ")
        return Problem(path, what, would_do)
    would_do = next((mark.text for mark in field.metadata if isinstance(mark, Remedy)), "") if field else ""
    if kind in BOUNDS:
        (bound,) = (context[name] for name in ("gt", "ge", "lt", "le") if name in context)
        return Problem(path, f"must be {BOUNDS[kind]} {bound:g}, is {shown(given)}", would_do)
    if kind == "literal_error":
        would_do = near_miss(str(given), _choices(field.annotation)) if field and isinstance(given, str) else ""
        return Problem(path, f"must be {context['expected']}, is {shown(given)}", would_do)
    if kind in ("string_too_short", "string_pattern_mismatch"):
        wanted = PATTERNS[context["pattern"]] if "pattern" in context else "some text"
        return Problem(path, f"must be {wanted}, is {shown(given)}", would_do)
    if kind == "too_short":
        return Problem(path, f"must have at least {context['min_length']}, has {context['actual_length']}", would_do)
    if kind in NOUNS:
        return Problem(path, f"must be {NOUNS[kind]}, is {shown(given)}", would_do)
    return Problem(path, f"{details['msg']}, is {shown(given)}", would_do)


def _yaml_path(location: tuple[int | str, ...], tree: Any) -> str:
    """The path as the YAML has it: a single pool has no index, although the schema holds a list of one."""
    parts, there = [], tree
    for part in location:
        if part == "[key]" or (isinstance(part, int) and not _has(there, part) and not isinstance(there, list)):
            continue
        parts.append(str(part))
        there = there[part] if _has(there, part) else None
    return ".".join(parts) or "configuration"


def _has(tree: Any, part: int | str) -> bool:
    if isinstance(tree, list):
        return isinstance(part, int) and part < len(tree)
    return isinstance(tree, dict) and part in tree


def _field_at(location: tuple[int | str, ...], root: type[BaseModel]) -> FieldInfo | None:
    model: type[BaseModel] | None = root
    field = None
    parts = (part for part in location if isinstance(part, str))
    for part in parts:
        field = model.model_fields.get(part) if model else None
        model = next(_models_in(field.annotation), None) if field else None
        if model and field and get_origin(field.annotation) is dict:
            next(parts, None)  # a name that the user chose
    return field


def _keys_at(location: tuple[int | str, ...], root: type[BaseModel]) -> list[str]:
    field = _field_at(location, root)
    model = root if field is None else next(_models_in(field.annotation), root)
    return list(model.model_fields)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The sections a field's type speaks of: Frontend, tuple[Pool, ...], Frontend | None."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models_in(part)


def _plain_types(annotation: Any) -> Iterator[Any]:
    """str and NoneType of Annotated[str, …] | None."""
    if get_origin(annotation) is Annotated:
        yield from _plain_types(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, UnionType):
        for part in get_args(annotation):
            yield from _plain_types(part)
    else:
        yield annotation


def _choices(annotation: Any) -> Iterator[str]:
    """Of the Literals in a field's type: Literal[…], tuple[Literal[…], ...]."""
    for part in get_args(annotation):
        yield from [str(part)] if get_origin(annotation) is Literal else _choices(part)
