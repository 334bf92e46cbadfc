"""JSON schemas at random, whose answers are short: a model of 135M parameters ends nothing that it need not end."""

from __future__ import annotations

import random
from typing import Any

WORDS = ("a", "red", "Paris", "été", 'say "hi"', "x/y", "", "two words")
NAMES = ("name", "age", "is_ok", "tags", "inner", "1st", "ключ")


def random_schema(chance: random.Random) -> dict[str, Any]:
    """Of an object, as `strict` wants it: all its properties are required, and it has no others."""
    return _object(chance, depth=2)


def _object(chance: random.Random, depth: int) -> dict[str, Any]:
    names = chance.sample(NAMES, chance.randint(1, 2))
    properties = {name: _any(chance, depth - 1) for name in names}
    return {"type": "object", "properties": properties, "required": names, "additionalProperties": False}


def _any(chance: random.Random, depth: int) -> dict[str, Any]:
    simple = (_enumeration, _constant, _integer, _boolean, _short, _pattern, _choice)
    return (
        chance.choice(simple)(chance) if depth < 1 or chance.random() < 0.7 else chance.choice(_NESTED)(chance, depth)
    )


def _enumeration(chance: random.Random) -> dict[str, Any]:
    return {"enum": [*chance.sample(WORDS, 2), chance.randint(-9, 9), None][: chance.randint(1, 4)]}


def _constant(chance: random.Random) -> dict[str, Any]:
    return {"const": chance.choice([*WORDS, 0, -1, True, None])}


def _integer(chance: random.Random) -> dict[str, Any]:
    least = chance.randint(-20, 20)
    return {"type": "integer", "minimum": least, "maximum": least + chance.randint(0, 200)}


def _boolean(_chance: random.Random) -> dict[str, Any]:
    return {"type": "boolean"}


def _short(chance: random.Random) -> dict[str, Any]:
    return {"type": "string", "minLength": chance.randint(0, 2), "maxLength": chance.randint(2, 5)}


def _pattern(chance: random.Random) -> dict[str, Any]:
    return {"type": "string", "pattern": chance.choice(["^[a-f]{2,4}$", "^(yes|no)$", "^[0-9]{3}-[0-9]{2}$"])}


def _choice(chance: random.Random) -> dict[str, Any]:
    return {"anyOf": [_integer(chance), _enumeration(chance)]}


def _array(chance: random.Random, depth: int) -> dict[str, Any]:
    least = chance.randint(0, 1)
    return {"type": "array", "items": _any(chance, depth - 1), "minItems": least, "maxItems": least + 1}


_NESTED = (_array, _object)
