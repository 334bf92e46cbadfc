"""How long a request waits for what, and how often it is tried again: `deadlines` (seconds), `routing` in the YAML."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds where the name ends in _s; 0 tries of a kind: a lost leg ends the request."""

    no_pair_s: float = 10.0
    queue_s: float = 30.0
    bootstrap_s: float = 60.0
    first_token_s: float = 120.0
    transfer_s: float = 30.0
    next_token_s: float = 60.0
    request_s: float = 1800.0
    queue_max: int = 1024
    read_ahead_tokens: int | None = None  # None: by the engine
    retry_limit: int = 3
    migration_limit: int = 3
    migration_tokens_max: int = 1 << 30
