"""How long things take before anything has been measured: from the model's shape and the GPU's data sheet.

In:    parameters, layers, KV bytes a token; the GPU's FLOP/s and memory bandwidth
Out:   a Prior, which costs.py mends with each measurement; a wrong one costs the first few requests some time
"""

from __future__ import annotations

import msgspec

FLOPS_SHARE, BANDWIDTH_SHARE = 0.4, 0.6  # of the data sheet, which engines come to


class Prior(msgspec.Struct, frozen=True):
    """Seconds, of one rank. The defaults are those of some 8 GB of weights on one H200."""

    read_prompt_s: float = 0.01  # for each prompt
    read_token_s: float = 5e-5  # for each token of it that is not cached
    read_area_s: float = 1e-10  # for each token² of attention (plane.ledger.Reading)
    step_s: float = 0.008  # of a decode step
    step_leg_s: float = 5e-5  # more for each leg
    step_token_s: float = 2e-8  # more for each token of KV that it reads
    transfer_s: float = 0.003  # of a prompt's KV
    transfer_byte_s: float = 1e-10  # more for each byte
    kv_bytes_per_token: int = 100_000
    output_tokens: float = 256.0  # of an answer


def prior_of(
    *, parameters: int, layers: int, hidden: int, kv_bytes_per_token: int, flops: float, bytes_per_s: float
) -> Prior:
    """`parameters`: that one token uses, two bytes each; `flops`, `bytes_per_s`: of all GPUs of a rank together.

    A token costs two operations a parameter; attention over an area of one token² four a layer and hidden unit; a
    step reads the weights once, and the KV of each leg.
    """
    compute, memory = flops * FLOPS_SHARE, bytes_per_s * BANDWIDTH_SHARE
    return Prior(
        read_token_s=2 * parameters / compute,
        read_area_s=4 * layers * hidden / compute,
        step_s=0.002 + 2 * parameters / memory,
        step_token_s=kv_bytes_per_token / memory,
        kv_bytes_per_token=kv_bytes_per_token,
    )
