"""One value that each argument of a release takes, made from what the table says of it."""

from __future__ import annotations

from typing import Any

from disagg.sglang.owned_arguments import OWNED_ARGUMENTS
from disagg.sglang.releases import Option, release
from disagg.sglang.versions import neutral_name

BY_PARSER = {"int": 3, "float": 0.5, "human_readable_int": 4096, "loads": {"a": 1}, "json_list_type": ["a", 1]}


def passing_arguments(version: str, *, switches: bool) -> dict[str, Any]:
    """Every argument of the release that a pool may say, in neutral names."""
    found: dict[str, Any] = {}
    for name, option in release(version).options.items():
        if name not in OWNED_ARGUMENTS and name != "attn_dp_size":
            found[neutral_name(name)] = switches if option.kind in ("switch", "yes_no") else _value(name, option)
    return found


def _value(name: str, option: Option) -> Any:
    if name == "cuda_graph_config":
        return {"decode": {"backend": "full", "max_bs": 256}}
    if option.kind == "adapters":
        return ["a=/adapters/a"]
    value = next((c for c in option.choices or () if c is not None), BY_PARSER.get(option.parser, "text"))
    return [value, value] if option.nargs in ("+", "*") else value
