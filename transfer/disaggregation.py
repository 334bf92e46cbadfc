"""What SGLang is told at both ends of a transfer: KV goes over NIXL, and for how long each waits for the other.

Way:   prefill/role.py, decode/role.py -> [kv_arguments, kv_environment] -> an engine's arguments and environment
"""

from __future__ import annotations

from typing import Any

AFTER_OUR_DEADLINE_S = 5  # SGLang's own timeouts fire only where ours did not


def kv_arguments(bootstrap_port: int) -> dict[str, Any]:
    return {"disaggregation_transfer_backend": "nixl", "disaggregation_bootstrap_port": bootstrap_port}


def kv_environment(first_token_s: float) -> dict[str, str]:
    """`first_token_s`: our own deadline, in seconds."""
    timeout_s = str(int(first_token_s) + AFTER_OUR_DEADLINE_S)
    return {
        "SGLANG_DISAGGREGATION_BOOTSTRAP_TIMEOUT": timeout_s,
        "SGLANG_DISAGGREGATION_WAITING_TIMEOUT": timeout_s,
        "SGLANG_DISAGGREGATION_HEARTBEAT_INTERVAL": "2",  # seconds; the lowest SGLang takes
        "SGLANG_DISAGGREGATION_HEARTBEAT_MAX_FAILURE": "1",
        "UCX_PROTO_INFO": "y",  # UCX prints what carries the KV: the lane is read from it
    }
