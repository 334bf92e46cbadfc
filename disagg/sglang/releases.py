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
import itertools
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import msgspec

from disagg.installed import installed_version

TABLE = Path(__file__).with_name("releases.jsonl")
RELEASES = ("0.5.16", "0.5.17", "0.5.18", "0.5.19", "0.5.20", "0.5.21", "0.5.22", "0.5.23")
NEUTRAL = "0.5.20"  # the release whose names a pool's `engine` is written in

Number = tuple[int, ...]


class Argument(msgspec.Struct, frozen=True):
    """What one release takes under a name."""

    # int, float, bool, str, list, dict, None; None: anything goes, SGLang is the judge
    types: frozenset[str] | None = None
    choices: tuple[Any, ...] | None = None
    choices_open: bool = False  # a list that SGLang's plugins may add to
    aliases: tuple[str, ...] = ()  # other names on SGLang's command line


class Option(msgspec.Struct, frozen=True):
    """How one release's command line takes an argument."""

    flag: str = ""  # in the table: only where it is not the argument's name (flag_of)
    # value: --x 1; switch: --x or nothing; yes_no: --x or --no-x; adapters: --lora-paths a=DIR b=DIR
    kind: Literal["value", "switch", "yes_no", "adapters"] = "value"
    nargs: Literal["+", "*", "?"] | None = None
    parser: str = "str"  # what SGLang reads the text with: int, float, str, loads, human_readable_int, …
    choices: tuple[Any, ...] | None = None  # in the table: only where they are not the argument's


class _Row(Argument, frozen=True, kw_only=True):
    """A line of the table."""

    name: str
    since: str
    until: str
    option: Option | None = None


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
    grouped = itertools.groupby(RELEASES, lambda version: name in _releases()[version].arguments)
    runs = [list(run) for has_it, run in grouped if has_it]
    return [(run[0], run[-1]) for run in runs]


@functools.cache
def _releases() -> dict[str, Release]:
    found = {version: Release(version, {}, {}) for version in RELEASES}
    for row in msgspec.json.Decoder(_Row).decode_lines(TABLE.read_bytes()):
        first, last = RELEASES.index(row.since), RELEASES.index(row.until)
        option = row.option
        if option is not None:
            flag, choices = option.flag or flag_of(row.name), option.choices or row.choices or None
            option = msgspec.structs.replace(option, flag=flag, choices=choices)
        for version in RELEASES[first : last + 1]:
            found[version].arguments[row.name] = row
            if option is not None:
                found[version].options[row.name] = option
    return found


def flag_of(name: str) -> str:
    return f"--{name.replace('_', '-')}"
