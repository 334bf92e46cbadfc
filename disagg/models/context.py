"""How many tokens a model was made for, as SGLang reads it from config.json (its get_context_length).

Way:   config.json -> [context_length] -> preflight, frontend
Out:   None where the file tells nothing
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# In SGLang's order.
CONTEXT_KEYS = ("max_sequence_length", "seq_length", "max_seq_len", "model_max_length", "max_position_embeddings")


def context_length(config: Mapping[str, Any]) -> int | None:
    """`config` is the language model's part."""
    told = next((config[key] for key in CONTEXT_KEYS if _is_number(config.get(key))), None)
    return None if told is None else int(told * _factor(config.get("rope_scaling") or config.get("rope_parameters")))


def _factor(scaling: Any) -> float:
    """The factor of a scaled context; 1 where the length in the file is already the scaled one."""
    if not isinstance(scaling, dict) or not _is_number(scaling.get("factor")):
        return 1
    is_scaled = "original_max_position_embeddings" in scaling or scaling.get("rope_type") == "llama3"
    return 1 if is_scaled else float(scaling["factor"])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")
