"""Refuses sampling parameters that the engines would accept and ignore.

Way:   a request, parsed -> [refuse_ignored] -> coordinator
In:    what every engine it may run on says of itself (disagg/sglang/ignored.py)
Fails: BadRequest (400) with the parameter's name and what an operator would do
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from disagg.fields import refuse


class KnowsEngines(Protocol):
    @property
    def ignored(self) -> Mapping[str, str]: ...


def refuse_ignored(sampling: Mapping[str, Any], engines: KnowsEngines) -> None:
    """`sampling`: SGLang's names. Where nothing is left to chance a seed has nothing to decide, and is let through.

    Engines are asked only for a request that has such a parameter: most have none.
    """
    asked = []
    if sampling.get("sampling_seed") is not None:
        asked.append("seed")
    if sampling.get("min_p"):
        asked.append("min_p")
    if not asked or sampling.get("temperature") == 0 or sampling.get("top_k") == 1:
        return
    ignored = engines.ignored
    for name in asked:
        if name in ignored:
            what = f"engines here would ignore '{name}'; leave it out, or an operator would {ignored[name]}"
            refuse(name, "ignored_parameter", what)
