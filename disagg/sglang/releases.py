"""The arguments of every supported SGLang release, installed or not: names, types, choices, and how each is said on the
command line.

Way:   releases.jsonl -> [one release] -> disagg/config/engine_arguments.py checks pools, command_line.py writes the
       line
In:    one line an argument and span of releases, made from SGLang's wheels and checked against their own parsers by
       `python -m tests.config.sglang_wheels`
Fails: never; a version outside the supported ones is read as the nearest of them, and then nothing is refused by it
       (disagg/config/engine_arguments.py)
"""

from __future__ import annotations

import functools
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from disagg.installed import installed_version

TABLE = Path(__file__).with_name("releases.jsonl")
RELEASES = ("0.5.16", "0.5.17", "0.5.18", "0.5.19", "0.5.20", "0.5.21", "0.5.22", "0.5.23")
NEUTRAL = "0.5.20"  # the release whose names a pool's `engine` is written in

Number = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Argument:
    """What one release takes under a name."""

    types: frozenset[str] | None  # int, float, bool, str, list, dict, None; None: anything goes, SGLang is the judge
    choices: tuple[object, ...] | None
    choices_open: bool = False  # a list that SGLang's plugins may add to
    aliases: tuple[str, ...] = ()  # other names on SGLang's command line


@dataclass(frozen=True, slots=True)
class Option:
    """How one release's command line takes an argument."""

    flag: str
    # value: --x 1; switch: --x or nothing; yes_no: --x or --no-x; adapters: --lora-paths a=DIR b=DIR
    kind: Literal["value", "switch", "yes_no", "adapters"]
    nargs: Literal["+", "*", "?"] | None
    parser: str  # what SGLang reads the text with: int, float, str, loads, human_readable_int, …
    choices: tuple[object, ...] | None


@dataclass(frozen=True, slots=True)
class Release:
    version: str  # as it calls itself: of one that is not supported, the rest is the nearest one's
    arguments: dict[str, Argument]
    options: dict[str, Option]  # by argument; one without an option can be said in Python only


def release(version: str) -> Release:
    return _releases()[nearest(version)]


def installed_release() -> Release | None:
    """Of the SGLang that this Python would import; None where there is none."""
    version = installed_version("sglang")
    return None if version is None else replace(release(version), version=version)


def is_supported(version: str) -> bool:
    return number_of(version) == number_of(nearest(version))


def nearest(version: str) -> str:
    """The supported release that `version` is, or the nearest one: 0.5.20.post1 is 0.5.20, 0.6.0 the newest."""
    number = number_of(version)
    below = [known for known in RELEASES if number_of(known) <= number]
    return below[-1] if below else RELEASES[0]


def number_of(version: str) -> Number:
    """(0, 5, 20) of "0.5.20.post1"; a text without a number is taken for the neutral release."""
    found = re.match(r"\d+(?:\.\d+){0,2}", version)
    return tuple(map(int, (found[0] if found else NEUTRAL).split(".")))


def spans(name: str) -> list[tuple[str, str]]:
    """(first, last) of each unbroken run of supported releases that have the argument `name`."""
    runs: list[list[str]] = []
    for index, version in enumerate(RELEASES):
        if name in _releases()[version].arguments:
            if runs and runs[-1][-1] == RELEASES[index - 1]:
                runs[-1].append(version)
            else:
                runs.append([version])
    return [(run[0], run[-1]) for run in runs]


@functools.cache
def _releases() -> dict[str, Release]:
    found = {version: Release(version, {}, {}) for version in RELEASES}
    for line in TABLE.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        first, last = RELEASES.index(row["since"]), RELEASES.index(row["until"])
        argument, option = _argument(row), _option(row)
        for version in RELEASES[first : last + 1]:
            found[version].arguments[row["name"]] = argument
            if option:
                found[version].options[row["name"]] = option
    return found


def _argument(row: dict[str, Any]) -> Argument:
    types, choices = row.get("types"), row.get("choices")
    return Argument(
        types=None if types is None else frozenset(types),
        choices=None if choices is None else tuple(choices),
        choices_open=row.get("choices_open", False),
        aliases=tuple(row.get("aliases", ())),
    )


def _option(row: dict[str, Any]) -> Option | None:
    option = row.get("option")
    if option is None:
        return None
    return Option(
        flag=option.get("flag", "--" + row["name"].replace("_", "-")),
        kind=option.get("kind", "value"),
        nargs=option.get("nargs"),
        parser=option.get("parser", "str"),
        choices=tuple(option.get("choices") or row.get("choices") or ()) or None,
    )
