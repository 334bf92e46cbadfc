"""Checks what pools say under `engine` against the arguments of the installed SGLang.

Way:   tree -> rules + [SGLang's arguments] -> ConfigError, or warnings in the plan
In:    pools in neutral names; the arguments of the release that would run, from our table (disagg/sglang/releases.py)
Fails: never by itself. Where SGLang is not installed it warns that nothing was checked; of a release that is not in
       the table the nearest one's arguments are taken, and what they would refuse is a warning
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from disagg.config.rules import SIZES, PoolText
from disagg.config.validation_errors import near_miss, nearest_word, shown
from disagg.errors import Problem
from disagg.sglang.owned_arguments import OWNED_ARGUMENTS
from disagg.sglang.releases import RELEASES, Argument, Release, is_supported, nearest, spans
from disagg.sglang.versions import REPLACED, neutral, spelling

UNCHECKED = "sglang is not installed here: the arguments under `engine` were not checked"
CHOICES_LISTED_MAX = 20
NOUN = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "list": "a list",
    "dict": "a mapping",
    "None": "null",
}


def check_arguments(pools: list[PoolText], sglang: Release | None) -> tuple[list[Problem], list[str]]:
    """(problems, warnings). A choice unknown in a list that SGLang's plugins may add to is a warning; so is everything
    where the release is not supported: it may take what the nearest one does not."""
    if sglang is None:
        return [], [UNCHECKED] if any(pool.engine for pool in pools) else []
    if is_supported(sglang.version):
        return _checked(pools, sglang)
    known = replace(sglang, version=nearest(sglang.version))
    problems, warnings = _checked(pools, known)
    told = [f"{each}; sglang {sglang.version} gets it all the same" for each in (*problems, *warnings)]
    return [], [_unknown_release(sglang.version), *told] if any(pool.engine for pool in pools) else []


def _checked(pools: list[PoolText], sglang: Release) -> tuple[list[Problem], list[str]]:
    problems: list[Problem] = []
    warnings: list[str] = []
    for pool in pools:
        for name, value in pool.engine.items():
            path = f"{pool.path}.engine.{name}"
            if name in OWNED_ARGUMENTS or name == "attn_dp_size":  # rules.py
                continue
            argument = sglang.arguments.get(spelling(str(name), sglang.version))
            if argument is None:
                problems.append(_unknown(path, str(name), sglang))
                continue
            if name not in SIZES:  # counts: rules.py
                problems += _mistyped(path, value, argument)
            if argument.choices and isinstance(value, str) and value not in argument.choices:
                problem = _not_a_choice(path, value, argument, sglang.version)
                if argument.choices_open:
                    warnings.append(str(problem))
                else:
                    problems.append(problem)
    return problems, warnings


def as_meant(pools: list[PoolText], sglang: Release | None) -> list[PoolText]:
    """The pools with their obvious mistakes mended, so that rules about several arguments can still be checked.


    A misspelled name is replaced by the name that the refusal proposes, a number in quotes by that number. A pool with
    a value that cannot be read at all is left out. (check_arguments reports all of these mistakes.)
    """
    meant = [_pool_as_meant(pool, sglang) for pool in pools]
    return [pool for pool in meant if pool is not None]


def _pool_as_meant(pool: PoolText, sglang: Release | None) -> PoolText | None:
    engine: dict[str, Any] = {}
    for said, value in pool.engine.items():
        name = _meant_name(str(said), sglang)
        read = int(value) if isinstance(value, str) and value.isdecimal() and _is_number(name, sglang) else value
        argument = sglang.arguments.get(spelling(name, sglang.version)) if sglang else None
        if name not in SIZES and argument is not None and any(_mistyped("", read, argument)):
            return None
        engine.setdefault(name, read)
    return pool._replace(engine=neutral(engine))


def _meant_name(said: str, sglang: Release | None) -> str:
    if sglang is None or said in OWNED_ARGUMENTS or spelling(said, sglang.version) in sglang.arguments:
        return said
    if not is_supported(sglang.version):
        return said  # which is not refused
    alias_of = (known for known, argument in sglang.arguments.items() if said in argument.aliases)
    return next(alias_of, None) or nearest_word(said, sglang.arguments) or said


def _is_number(name: str, sglang: Release | None) -> bool:
    argument = sglang.arguments.get(name) if sglang else None
    return name in SIZES or (argument is not None and argument.types is not None and "int" in argument.types)


def _unknown_release(version: str) -> str:
    supported = f"{RELEASES[0]} to {RELEASES[-1]}"
    return f"sglang {version} is not one of {supported}: its arguments are spelled as in {nearest(version)}"


def _unknown(path: str, name: str, sglang: Release) -> Problem:
    for known, argument in sglang.arguments.items():
        if name in argument.aliases:
            return Problem(path, f"{name!r} is a command-line alias in sglang {sglang.version}", f"say {known}")
    what = f"sglang {sglang.version} has no argument {name!r}"
    if had := spans(name):
        in_which = " and ".join(first if first == last else f"{first} to {last}" for first, last in had)
        what += f": it is one of {in_which}"
    if name in REPLACED or had:
        return Problem(path, what, REPLACED.get(name, "leave it out, or install a release that has it"))
    return Problem(path, what, near_miss(name, sglang.arguments) or "see `python -m sglang.launch_server --help`")


def _mistyped(path: str, value: Any, argument: Argument) -> Iterator[Problem]:
    if argument.types is None:
        return
    given = "None" if value is None else type(value).__name__
    fits = argument.types | ({"int"} if "float" in argument.types else set())
    if given not in fits:
        wanted = " or ".join(NOUN[name] for name in sorted(argument.types - {"None"}, key=list(NOUN).index))
        yield Problem(
            path, f"must be {wanted or 'null'}, is {shown(value)}", "take the quotes off" if _quoted(value) else ""
        )


def _quoted(value: Any) -> bool:
    return isinstance(value, str) and (value.isdecimal() or value in ("true", "false"))


def _not_a_choice(path: str, value: str, argument: Argument, version: str) -> Problem:
    choices = [str(choice) for choice in argument.choices or () if choice is not None]
    what = f"{value!r} is not among the choices of sglang {version}"
    few = len(choices) <= CHOICES_LISTED_MAX
    return Problem(path, what, f"they are {', '.join(choices)}" if few else near_miss(value, choices))
