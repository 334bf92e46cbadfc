"""The command line that starts an SGLang server with an engine's arguments.

Way:   plan -> emit -> [command_line] -> `disagg check` shows it; SGLang's own parser is asked about it in tests
In:    complete arguments in neutral names, and the version that would run
Out:   a list of words. It is shown, not run: engines are started as sglang.Engine, which takes the same arguments

What equals "not said" is left out: null, and false for a switch. A few switches are null by default, for SGLang to
decide (enable_multimodal): there false is an argument of Engine that no command line can say.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from disagg.sglang.releases import Option, flag_of, release
from disagg.sglang.versions import emit

PROGRAM = ("python", "-m", "sglang.launch_server")


def command_line(arguments: Mapping[str, Any], version: str) -> list[str]:
    """`shlex.join` makes it one line. An argument unknown to the release is written as its value suggests."""
    options = release(version).options
    words = list(PROGRAM)
    for name, value in emit(arguments, version).items():
        if value is not None:
            words += _words(options.get(name) or _guessed(name, value), value)
    return words


def _words(option: Option, value: Any) -> list[str]:
    if option.kind == "switch":
        return [option.flag] if value else []
    if option.kind == "yes_no":
        return [option.flag if value else option.flag.replace("--", "--no-", 1)]
    if option.kind == "adapters" and isinstance(value, dict):
        return [option.flag, *(f"{name}={path}" for name, path in value.items())]
    if option.nargs in ("+", "*") and isinstance(value, list | tuple):
        return [option.flag, *map(_text, value)] if value or option.nargs == "*" else []
    text = _text(value)
    # A word that begins with a dash is taken for an option, unless it is a number.
    return [f"{option.flag}={text}"] if text.startswith("-") and isinstance(value, str) else [option.flag, text]


def _text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, dict | list | tuple | bool) else str(value)


def _guessed(name: str, value: Any) -> Option:
    kind: Literal["switch", "value"] = "switch" if isinstance(value, bool) else "value"
    return Option(flag_of(name), kind, nargs="+" if isinstance(value, list | tuple) else None)
