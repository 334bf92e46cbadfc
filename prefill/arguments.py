"""What makes an SGLang engine a prefill engine: it reads prompts, keeps their KV until a decode engine has it.

Way:   pool.engine -> [role] -> device -> sglang.Engine(**arguments)   (disagg/sglang/arguments.py puts it together)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TRANSFER_BACKEND = "nixl"


def prefill_arguments(engine: Mapping[str, Any], *, bootstrap_port: int) -> dict[str, Any]:
    """The pool's own arguments completed with the role's. The bootstrap server listens on the engine's `host`."""
    return {
        **engine,
        "disaggregation_mode": "prefill",
        "disaggregation_transfer_backend": TRANSFER_BACKEND,
        "disaggregation_bootstrap_port": bootstrap_port,
    }
