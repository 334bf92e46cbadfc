"""How a request tells its engines that the answer reasons before its constraint holds: the ids that end the reasoning.

Way:   disagg/frontend/parsing.py -> [after_reasoning], sampling of both legs -> SGLang's custom_params -> [end_ids_of],
       disagg/sglang/plugins/grammar.py
Why:   the frontend alone knows the model's parsers, and whether this request thinks; engines need no word of either.
       custom_params is what SGLang hands through to its schedulers as it is, in every release
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_KEY = "disagg_think_end_ids"


def after_reasoning(end_ids: Sequence[int]) -> dict[str, Any]:
    """Sampling parameters beside a grammar's: it begins after these ids."""
    return {"custom_params": {_KEY: list(end_ids)}}


def end_ids_of(custom_params: Any) -> list[int]:
    """Empty where the grammar holds from the first token."""
    return list(custom_params.get(_KEY) or ()) if isinstance(custom_params, dict) else []
