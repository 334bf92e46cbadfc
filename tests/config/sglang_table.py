"""The table releases.jsonl from what every release said of itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

Row = dict[str, Any]
DEFAULTS: Row = {"choices": None, "choices_open": False, "aliases": []}
OPTION_DEFAULTS: Row = {"kind": "value", "nargs": None, "parser": "str", "choices": None}


def table(told: Mapping[str, Mapping[str, Row]]) -> str:
    """One line an argument and unbroken span of releases that say the same of it, by name and release."""
    rows: list[Row] = []
    for name in sorted({name for rows_of in told.values() for name in rows_of}):
        last: tuple[str, Row] | None = None
        for version, rows_of in told.items():
            row = _short(rows_of[name]) if name in rows_of else None
            if row is not None and last is not None and last[1] == row:
                rows[-1]["until"] = version
            elif row is not None:
                rows.append({"name": name, "since": version, "until": version, **row})
            last = None if row is None else (version, row)
    return "".join(json.dumps(row) + "\n" for row in rows)


def _short(row: Row) -> Row:
    """Without what is read back from the rest."""
    short = {key: value for key, value in row.items() if key != "name" and value != DEFAULTS.get(key, "no default")}
    if "option" in row:
        flag = "--" + row["name"].replace("_", "-")
        defaults = {**OPTION_DEFAULTS, "flag": flag}
        short["option"] = {key: value for key, value in row["option"].items() if value != defaults[key]}
    return short
