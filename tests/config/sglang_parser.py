"""A release's command-line parser, rebuilt from the table: argparse as SGLang sets it up, without SGLang."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

from disagg.sglang.releases import Argument, Option, release

READERS: dict[str, Callable[[str], Any]] = {"int": int, "float": float, "human_readable_int": int, "str": str}
READERS |= dict.fromkeys(("loads", "json_list_type", "parse_cuda_graph_config_arg"), json.loads)
READERS |= dict.fromkeys(("nullable_str", "parse_cuda_graph_backend_arg"), str)


def parser_of(version: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"sglang {version}", exit_on_error=False, add_help=False)
    known = release(version)
    for name, option in known.options.items():
        aliases = [f"--{alias.replace('_', '-')}" for alias in known.arguments[name].aliases]
        flags = dict.fromkeys([option.flag, *aliases])
        parser.add_argument(*flags, dest=name, **_how(option, known.arguments[name]))
    return parser


def _how(option: Option, argument: Argument) -> dict[str, Any]:
    if option.kind == "switch":
        return {"action": "store_true", "default": None if argument.types and "None" in argument.types else False}
    if option.kind == "yes_no":
        return {"action": argparse.BooleanOptionalAction}
    return {"type": READERS[option.parser], "nargs": option.nargs, "choices": option.choices}
