"""What makes an SGLang engine a decode engine: it takes KV from a prefill engine and makes a token a step.

Way:   pool.engine -> [role] -> device -> sglang.Engine(**arguments)   (disagg/sglang/arguments.py puts it together)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TRANSFER_BACKEND = "nixl"


def decode_arguments(engine: Mapping[str, Any], *, device: str, bootstrap_port: int) -> dict[str, Any]:
    """The pool's own arguments completed with the role's.

    `bootstrap_port` is the engine's own and nobody listens there: without one of its own each would claim the default.
    """
    # Retracted requests keep their KV on the host; SGLang's choice (a pinned pool) calls cudaHostRegister.
    defaults = {"disaggregation_decode_retraction_backup": "cpu_tensor"} if device == "cpu" else {}
    return {
        **defaults,
        **engine,
        "disaggregation_mode": "decode",
        "disaggregation_transfer_backend": TRANSFER_BACKEND,
        "disaggregation_bootstrap_port": bootstrap_port,
    }
