"""Reads one field of a JSON body: its type, its range, and a 400 that names it when it is wrong.

Way:   JSON body -> [fields] -> parameters -> Request
In:    a decoded body without its nulls: for OpenAI a null is an absent field. Where a whole number is meant, 16.0 is 16
Fails: BadRequest with the field's name and a code of its own for each way to be wrong
"""

from __future__ import annotations

from typing import Any, NoReturn, TypeVar

from disagg.errors import BadRequest

Body = dict[str, Any]
T = TypeVar("T")
_KINDS: dict[type, str] = {str: "a string", list: "a list", dict: "an object"}


def refuse(param: str | None, code: str, message: str) -> NoReturn:
    raise BadRequest(param, code, message)


def required(body: Body, name: str) -> Any:
    if name not in body:
        refuse(name, "missing_required_parameter", f"'{name}' is missing")
    return body[name]


def integer(body: Body, name: str, least: int, most: int) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if type(value) is not int:  # a bool is an int to isinstance
        value = whole(value)
        if value is None:
            wrong_type(name, "an integer", body[name])
    if value < least:
        refuse(name, "integer_below_min_value", f"'{name}' is {value}; it must be at least {least}")
    if value > most:
        refuse(name, "integer_above_max_value", f"'{name}' is {value}; it must be at most {most}")
    return value


def whole(value: Any) -> int | None:
    """The integer that a JSON number stands for, however it is written; None for what is none."""
    if type(value) is int:
        return value
    return int(value) if type(value) is float and value.is_integer() else None


def decimal(body: Body, name: str, least: float, most: float, *, above_least: bool = False) -> float | None:
    """In [least, most], or in (least, most]."""
    value = body.get(name)
    if value is None:
        return None
    if type(value) not in (int, float):
        wrong_type(name, "a number", value)
    if value < least or (above_least and value == least):
        bound = "above" if above_least else "at least"
        refuse(name, "decimal_below_min_value", f"'{name}' is {value}; it must be {bound} {least:g}")
    if value > most:
        refuse(name, "decimal_above_max_value", f"'{name}' is {value}; it must be at most {most:g}")
    return float(value)


def boolean(body: Body, name: str, *, absent: bool = False) -> bool:
    value = body.get(name, absent)
    if type(value) is not bool:
        wrong_type(name, "true or false", value)
    return bool(value)


def strings(body: Body, name: str, most: int, longest: int) -> tuple[str, ...]:
    """A string or a list of strings; absent is none, and an empty string asks for nothing."""
    value = body.get(name)
    if value is None:
        return ()
    each_name = f"{name}[{{}}]"
    if isinstance(value, str):
        value, each_name = [value], name
    if not isinstance(value, list):
        wrong_type(name, "a string or a list of strings", value)
    if len(value) > most:
        refuse(name, "array_above_max_length", f"'{name}' has {len(value)} entries; at most {most} are allowed")
    for index, each in enumerate(value):
        here = each_name.format(index)
        if not isinstance(each, str):
            wrong_type(here, "a string", each)
        if len(each) > longest:
            refuse(
                here, "string_above_max_length", f"'{here}' has {len(each)} characters; at most {longest} are allowed"
            )
    return tuple(filter(None, value))


def typed(kind: type[T], value: Any, name: str) -> T:
    """The value, if it is a text, a list or an object, as `kind` says."""
    if not isinstance(value, kind):
        wrong_type(name, _KINDS[kind], value)
    return value


def token_ids(ids: list[Any], here: str, vocabulary: int) -> list[int]:
    """Each one the model knows, or BadRequest for the first that it does not."""
    # All at once, in C: one by one, 8,000 ids take a millisecond of everybody's time.
    if not ids or (set(map(type, ids)) == {int} and min(ids) >= 0 and max(ids) < vocabulary):
        return ids
    checked = []
    for index, given in enumerate(ids):
        token_id = whole(given)
        if token_id is None:
            wrong_type(f"{here}[{index}]", "a token id", given)
        if not 0 <= token_id < vocabulary:
            what = f"'{here}[{index}]' is {token_id}; token ids of this model are 0 to {vocabulary - 1}"
            refuse(f"{here}[{index}]", "invalid_token_id", what)
        checked.append(token_id)
    return checked


def is_larger(value: Any, most: int) -> bool:
    """Whether more than `most` values and names stand in it. Without recursion, as `is_deeper`."""
    level, left = [value], most
    while level and left >= 0:
        left -= len(level)
        inner: list[Any] = []
        for each in level:
            if isinstance(each, dict):
                left -= len(each)
                inner += each.values()
            elif isinstance(each, list):
                inner += each
        level = inner
    return left < 0


def is_deeper(value: Any, depth: int) -> bool:
    """Whether lists and objects stand in each other more than `depth` times. Without recursion: it is asked of what a
    client nested a thousand deep, too."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(depth):
        level = [
            inner
            for each in level
            for inner in (each.values() if isinstance(each, dict) else each)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return bool(level)


def wrong_type(name: str, wanted: str, value: Any) -> NoReturn:
    refuse(name, "invalid_type", f"'{name}' must be {wanted}, not {_json_type(value)}")


def _json_type(value: Any) -> str:
    kinds = {
        bool: "a boolean",
        int: "an integer",
        float: "a number",
        str: "a string",
        list: "a list",
        dict: "an object",
    }
    return kinds.get(type(value), "null")
