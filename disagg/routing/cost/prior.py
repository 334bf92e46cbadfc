"""How long things take before anything has been measured. costs.py mends it with each measurement; a wrong one costs
the first few requests some time."""

from __future__ import annotations

import msgspec


class Prior(msgspec.Struct, frozen=True):
    """Seconds, of one rank. The defaults are those of some 8 GB of weights on one H200."""

    read_prompt_s: float = 0.01  # for each prompt
    read_token_s: float = 5e-5  # for each token of it that is not cached
    read_area_s: float = 1e-10  # for each token² of attention (plane.ledger.Reading)
    read_loaded_s: float = 4e-6  # for each cached token that is in the host's memory: 100,000 bytes over PCIe
    step_s: float = 0.008  # of a decode step
    step_leg_s: float = 5e-5  # more for each leg
    step_token_s: float = 2e-8  # more for each token of KV that it reads
    transfer_s: float = 0.003  # of a prompt's KV
    transfer_byte_s: float = 1e-10  # more for each byte
    kv_bytes_per_token: int = 100_000
    output_tokens: float = 256.0  # of an answer
