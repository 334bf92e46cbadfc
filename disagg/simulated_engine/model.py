"""What is set of a simulated engine: how big it is, and how long its work takes."""

from __future__ import annotations

from dataclasses import dataclass

from disagg.roles import Role


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """How big an engine is and how long it takes. `speed` divides computing and transfer, not SGLang's timeouts."""

    role: Role
    ranks: int = 1
    kv_tokens: int = 65_536  # of each rank
    page_size: int = 16
    requests_max: int = 256
    context_length: int = 8192
    cache_block_tokens: int = 64  # of the prefix cache; 0: none
    chunk_tokens: int = 512
    prefill_token_s: float = 0.0002
    prefill_attention_s: float = 0.0  # more for each pair of a token and one before it in its prompt
    step_s: float = 0.01
    step_leg_s: float = 0.0002  # more for each leg of a decode step
    step_context_s: float = 0.0  # more for each token of KV that these legs have
    tokens_per_step: int = 1  # coarser steps cost less
    kv_bytes_per_token: int = 24_576
    transfer_setup_s: float = 0.002
    transfer_bytes_per_s: float = 1e9
    dispatch_s: float = 0.0005
    register_s: float = 0.05  # until all ranks are known to the bootstrap server
    bootstrap_timeout_s: float = 30.0
    waiting_timeout_s: float = 30.0
    release_timeout_s: float = 30.0
    heartbeat_s: float = 2.0
    heartbeat_misses: int = 2
    speed: float = 1.0
    loses_early_aborts: bool = False

    def chunk_s(self, tokens: int, pairs: float) -> float:
        """A step that reads `tokens` of prompts. `pairs`: see `pairs_of`; over all prompts of the chunk."""
        return self.step_s + tokens * self.prefill_token_s + pairs * self.prefill_attention_s

    def decode_step_s(self, legs: int, context_tokens: int) -> float:
        """A step of so many legs whose KV is `context_tokens` in all."""
        return self.step_s + legs * self.step_leg_s + context_tokens * self.step_context_s


def pairs_of(tokens: int, before: int) -> float:
    """Pairs of a token and one before it, for `tokens` of a prompt that come after `before` others."""
    return tokens * (before + tokens / 2)
