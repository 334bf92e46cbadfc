"""Run beside one SGLang release (see sglang_wheels.py): imports its ServerArgs and asks the parser it builds."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from disagg.sglang.command_line import PROGRAM, command_line
from disagg.sglang.server_args import read_arguments
from disagg.sglang.versions import emit
from tests.config.sglang_engines import ENGINES, arguments_of
from tests.config.sglang_values import passing_arguments

KINDS = {"BooleanOptionalAction": "yes_no", "LoRAPathAction": "adapters"}
SWITCHES = ("_StoreTrueAction", "DeprecatedStoreTrueAction")


def main(version: str, answer: Path, *, table_only: bool) -> None:
    import sglang
    from sglang.srt.server_args import ServerArgs

    parser = argparse.ArgumentParser(prog=f"sglang {version}", exit_on_error=False)
    ServerArgs.add_cli_args(parser)
    lines = [] if table_only else list(command_lines(version))
    found = {
        "arguments": tell(parser, Path(sglang.__path__[0])),
        "lines": len(lines),
        "complaints": [
            complaint for where, arguments in lines for complaint in misread(parser, where, arguments, version)
        ],
    }
    answer.write_text(json.dumps(found, default=str))


def tell(parser: argparse.ArgumentParser, package: Path) -> dict[str, Any]:
    """Every argument as a row of the table, without its releases."""
    actions: dict[str, argparse.Action] = {}
    for action in parser._actions:
        actions.setdefault(action.dest, action)
    rows = {}
    for name, argument in read_arguments(package).items():
        row: dict[str, Any] = {"name": name, "types": argument.types and sorted(argument.types)}
        row |= {"choices": argument.choices, "choices_open": argument.choices_open, "aliases": argument.aliases}
        if name in actions:
            row["option"] = _option(actions[name], argument.choices)
        rows[name] = row
    return rows


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
