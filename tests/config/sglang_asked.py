"""Run beside one SGLang release (see sglang_wheels.py): imports its ServerArgs and asks the parser it builds."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec

from disagg.sglang.command_line import PROGRAM, command_line
from disagg.sglang.versions import emit
from tests.config.sglang_engines import ENGINES, arguments_of
from tests.config.sglang_values import passing_arguments

PLAIN = {"int", "float", "bool", "str", "list", "dict"}
KINDS = {"BooleanOptionalAction": "yes_no", "LoRAPathAction": "adapters"}
SWITCHES = ("_StoreTrueAction", "DeprecatedStoreTrueAction")


def main(version: str, answer: Path, *, table_only: bool) -> None:
    from sglang.srt.server_args import ServerArgs

    parser = argparse.ArgumentParser(prog=f"sglang {version}", exit_on_error=False)
    ServerArgs.add_cli_args(parser)
    lines = [] if table_only else list(command_lines(version))
    found = {
        "arguments": tell(parser, ServerArgs),
        "lines": len(lines),
        "complaints": [
            complaint for where, arguments in lines for complaint in misread(parser, where, arguments, version)
        ],
    }
    answer.write_text(json.dumps(found, default=str))


def tell(parser: argparse.ArgumentParser, record: Any) -> dict[str, Any]:
    """Every argument as a row of the table, without its releases."""
    actions: dict[str, argparse.Action] = {}
    for action in parser._actions:
        actions.setdefault(action.dest, action)
    fields = dataclasses.fields(record) if dataclasses.is_dataclass(record) else msgspec.structs.fields(record)
    hints = get_type_hints(record, include_extras=True)
    rows = {}
    for name, default in [(field.name, field.default) for field in fields if not field.name.startswith("_")]:
        rows[name] = {"name": name, **_argument(hints[name], may_be_none=default is None)}
        if name in actions:
            rows[name]["option"] = _option(actions[name], rows[name]["choices"])
    return rows


def _argument(hint: Any, *, may_be_none: bool) -> dict[str, Any]:
    """Of the type, and of SGLang's Arg beside it."""
    marks = next((mark for mark in getattr(hint, "__metadata__", ()) if type(mark).__name__ == "Arg"), None)
    types, literals = _types(hint.__origin__ if hasattr(hint, "__metadata__") else hint)
    if types is not None and may_be_none:
        types |= {"None"}
    choices, aliases = getattr(marks, "choices", None), getattr(marks, "aliases", None) or ()
    if types is not None and getattr(marks, "type_parser", None) is json.loads:
        # Its text is parsed, so a keyword argument is the mapping itself: preferred_sampling_params says str, and lies.
        types = (types - {"str"}) | {"dict"}
    names = [name for name in (getattr(marks, "cli_name", None), *aliases) if name]
    return {
        "types": types and sorted(types),
        "choices": literals or (sorted(choices) if isinstance(choices, set) else choices and list(choices)),
        "choices_open": not literals and choices is not None and _has_a_name(choices),
        "aliases": [name.lstrip("-").replace("-", "_") for name in names],
    }


def _types(hint: Any) -> tuple[set[str] | None, list[Any] | None]:
    """The plain types and, of a Literal alone or beside None, the values. None: anything goes."""
    if hint is None or hint is type(None):
        return {"None"}, None
    if get_origin(hint) is Literal:
        values = list(get_args(hint))
        return {type(value).__name__.replace("NoneType", "None") for value in values}, values
    if get_origin(hint) in (Union, UnionType):
        parts = [_types(part) for part in get_args(hint)]
        if any(types is None for types, _ in parts):
            return None, None
        bare = set().union(*(types for types, values in parts if not values))
        literals = [value for _, values in parts for value in values or ()]
        return set().union(*(types for types, _ in parts)), literals if literals and bare <= {"None"} else None
    name = getattr(get_origin(hint) or hint, "__name__", "").replace("tuple", "list").replace("Sequence", "list")
    return ({name}, None) if name in PLAIN else (None, None)


def _has_a_name(choices: Any) -> bool:
    """A list of a module, which SGLang's plugins may add to; not one that stands in the field itself."""
    ours = [module for name, module in list(sys.modules.items()) if name.startswith("sglang.srt")]
    return any(value is choices for module in ours for value in vars(module).values())


def _option(action: argparse.Action, choices: tuple[object, ...] | None) -> dict[str, Any]:
    kind = "switch" if type(action).__name__ in SWITCHES else KINDS.get(type(action).__name__, "value")
    asked = [None if choice is None else str(choice) for choice in action.choices or ()]
    return {
        "flag": action.option_strings[0],
        "kind": kind,
        "nargs": action.nargs if action.nargs in ("+", "*", "?") else None,
        "parser": getattr(action.type, "__name__", "str"),
        "choices": None if set(asked) == {None if c is None else str(c) for c in choices or ()} else sorted(asked),
    }


def command_lines(version: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, complete neutral arguments): of the engines, then of all arguments at once, switches on and off."""
    yield from ((name, arguments_of(name)) for name in ENGINES)
    yield "all arguments, on", {"model_path": "m"} | passing_arguments(version, switches=True)
    yield "all arguments, off", {"model_path": "m"} | passing_arguments(version, switches=False)


def misread(parser: argparse.ArgumentParser, where: str, arguments: dict[str, Any], version: str) -> list[str]:
    """What the parser makes of the command line that is not what it was made from."""
    read = parsed(parser, command_line(arguments, version)[len(PROGRAM) :])
    plain = parsed(parser, ["--model-path", "m"])
    if isinstance(read, str) or isinstance(plain, str):
        return [f"{where}: {read}"]
    meant = emit(arguments, version)
    wrong = [name for name in read if not same(read[name], meant.get(name), plain[name])]
    return [f"{where}: {name} is read as {read[name]!r}, meant as {meant.get(name)!r}" for name in wrong] + [
        f"{where}: {name} is not read at all" for name in meant if name not in read
    ]


def parsed(parser: argparse.ArgumentParser, words: list[str]) -> dict[str, Any] | str:
    """The namespace, or the parser's complaint."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            return vars(parser.parse_args(words))
    except (argparse.ArgumentError, SystemExit) as error:
        return f"refused: {error} {said.getvalue()[-300:]}"


def same(read: Any, meant: Any, default: Any) -> bool:
    """Equal as SGLang takes them: null, what is not said and a switch that is off are the default, a mapping of
    adapters is the list of NAME=PATH."""
    if meant is None:
        return bool(read == default)
    if meant is False and default is None:
        return not read
    if isinstance(meant, dict) and isinstance(read, list):
        meant = [f"{name}={path}" for name, path in meant.items()]
    return bool(read == meant)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), table_only="--table-only" in sys.argv)
