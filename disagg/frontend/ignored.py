"""Refuses what the engines would take and not heed.

Way:   a request, parsed -> [refuse_ignored] -> coordinator
In:    what every engine it may run on says of itself (disagg/engine/ignored.py)
Fails: BadRequest (400) with the parameter's name and what an operator would do
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from disagg.frontend.fields import refuse


def refuse_ignored(sampling: Mapping[str, Any], ignored: Mapping[str, str]) -> None:
    """`sampling`: SGLang's names. Where nothing is left to chance a seed has nothing to decide, and is let through."""
    is_greedy = sampling.get("temperature") == 0 or sampling.get("top_k") == 1
    asked = {
        "seed": sampling.get("sampling_seed") is not None and not is_greedy,
        "min_p": bool(sampling.get("min_p")) and not is_greedy,
    }
    for name, would_do in ignored.items():
        if asked.get(name):
            refuse(
                name,
                "ignored_parameter",
                f"engines here would ignore '{name}'; leave it out, or an operator would {would_do}",
            )
