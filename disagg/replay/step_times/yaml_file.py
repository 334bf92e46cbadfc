"""The YAML of a simulated deployment whose engines take as long as a named source says.

Way:   Source -> [fitted] -> [yaml_of] -> a file that `disagg serve` and `disagg bench replay --on` take
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import yaml

from disagg.replay.step_times.fit import Fit, Point, decode_point, fit, prefill_point
from disagg.replay.step_times.source import Layout, Memory
from disagg.role_table import ROLES
from disagg.roles import Role

CHUNK_TOKENS = (256, 1024, 4096, 8192)
BEFORE_TOKENS = (0, 4096, 16384, 32768)
LEGS = (1, 4, 16, 64, 128)
CONTEXT_TOKENS = (512, 2048, 8192, 32768)
DIGITS = 4
PAGE_SIZE = 64


class StepTimes(Protocol):
    """What a source tells, as source.py does."""

    model: str
    gpu: str
    layout: Layout

    @property
    def name(self) -> str: ...

    def prefill_s(self, tokens: int, before: int) -> float: ...

    def decode_s(self, legs: int, context_tokens: int) -> float: ...

    def memory(self, chunk_tokens: int) -> Memory: ...


@dataclass(frozen=True)
class Fitted:
    prefill: Fit
    decode: Fit
    memory: Memory


def fitted(source: StepTimes, chunk_tokens: int) -> Fitted:
    """Asks for chunks up to `chunk_tokens`, and for batches whose KV has room."""
    memory = source.memory(chunk_tokens)
    return Fitted(
        fit(list(_prefill_points(source, chunk_tokens, memory.kv_tokens))),
        fit(list(_decode_points(source, memory.kv_tokens))),
        memory,
    )


def _prefill_points(source: StepTimes, chunk_tokens: int, kv_tokens: int) -> Iterator[Point]:
    for tokens in sorted({min(tokens, chunk_tokens) for tokens in CHUNK_TOKENS}):
        for before in BEFORE_TOKENS:
            if tokens + before <= kv_tokens:
                yield prefill_point(tokens, before, source.prefill_s(tokens, before))


def _decode_points(source: StepTimes, kv_tokens: int) -> Iterator[Point]:
    for legs in LEGS:
        for context_tokens in CONTEXT_TOKENS:
            if legs * context_tokens <= kv_tokens:
                yield decode_point(legs, context_tokens, source.decode_s(legs, context_tokens))


def engine_of(role: Role, of: Fitted, ranks: int, chunk_tokens: int, lane: Mapping[str, float]) -> dict[str, Any]:
    """Values of a pool's `engine`. On one that serves alone a step as such takes as long as decode's."""
    step_s, leg_s, context_s = of.decode.coefficients
    read_s, token_s, pair_s = of.prefill.coefficients
    reads = {"chunk_tokens": chunk_tokens, "prefill_token_s": token_s, "prefill_attention_s": pair_s}
    decodes = {"step_leg_s": leg_s, "step_context_s": context_s}
    it = ROLES[role]
    values: dict[str, float] = {
        "step_s": read_s if it.sends_kv_to else step_s,
        **(reads if it.reads_prompts else {}),
        **(decodes if not it.sends_kv_to else {}),
        **(lane if it.sends_kv_to else {}),
    }
    return {
        "ranks": ranks,
        "kv_tokens": of.memory.kv_tokens // PAGE_SIZE * PAGE_SIZE,
        "kv_bytes_per_token": of.memory.kv_bytes_per_token,
        "page_size": PAGE_SIZE,
        **{name: value if isinstance(value, int) else _rounded(value) for name, value in values.items()},
    }


def yaml_of(
    source: StepTimes, of: Fitted, engines: Mapping[Role, int], chunk_tokens: int, lane: Mapping[str, float]
) -> str:
    """`engines`: how many of each role. `lane`: transfer_setup_s and transfer_bytes_per_s."""
    layout = source.layout
    said = [
        f"Simulated engines with the step times of {source.model} on {source.gpu}:",
        f"tp {layout.tp}, dp {layout.dp}, ep {layout.ep or 'as the package chooses'}.",
        f"Source: {source.name}; written by `disagg bench step-times`.",
        f"A chunk: {_said(of.prefill)}.",
        f"A decode step: {_said(of.decode)}.",
    ]
    tree = {
        "version": 1,
        "device": "simulated",
        "model": {"path": "smollm2"},  # whose tokenizer is real
        **{
            role.value: {"replicas": count, "engine": engine_of(role, of, layout.dp, chunk_tokens, lane)}
            for role, count in engines.items()
        },
    }
    return "".join(f"# {line}\n" for line in said) + yaml.safe_dump(tree, sort_keys=False)


def _said(of: Fit) -> str:
    return f"{of.points} points, off by {of.error_median:.1%} in the median, {of.error_max:.1%} at most"


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
