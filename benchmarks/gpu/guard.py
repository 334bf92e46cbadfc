"""What it costs to look for NaN in every step's logits (not_a_number.py): sampling with and without.

Way:   logits of a batch -> temperature, softmax, draw, as SGLang's pytorch sampling does it; the look before it, or not
Out:   results/guard.json and a table: microseconds a step, medians of alternating rounds, and the ratio's spread

Run:   python3 -m benchmarks.gpu.guard      (on a GPU or a CPU; no engine)
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from benchmarks.gpu.places import write_result
from disagg.sglang.plugins.not_a_number import make_harmless

BATCHES, VOCABULARIES = {"cuda": (1, 16, 64), "cpu": (1, 16)}, {"cuda": (49_152, 151_936), "cpu": (49_152,)}
ROUNDS, STEPS_GPU, STEPS_CPU = 9, 200, 3


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(1)  # as an engine's
    rows = [_measured(device, batch, vocabulary) for vocabulary in VOCABULARIES[device] for batch in BATCHES[device]]
    write_result("guard", {"device": device, "rows": rows})
    print(f"{device}: microseconds of a sampling step")
    for row in rows:
        print("{batch:>4} x {vocabulary:<8}{without_us:>10.1f} {with_us:>10.1f}   {ratio}".format(**row))


def _measured(device: str, batch: int, vocabulary: int) -> dict[str, Any]:
    logits = torch.randn(batch, vocabulary, device=device)
    temperatures = torch.full((batch, 1), 0.8, device=device)

    def without() -> None:
        torch.multinomial(torch.softmax(logits / temperatures, dim=-1), 1)

    def with_guard() -> None:
        make_harmless(logits, temperatures)
        without()

    for each in (without, with_guard):
        _step_us(each, device)
    pairs = []
    for number in range(ROUNDS):
        order = (without, with_guard) if number % 2 else (with_guard, without)
        took_us = {each: _step_us(each, device) for each in order}
        pairs.append((took_us[without], took_us[with_guard]))
    ratios = sorted(b / a for a, b in pairs)
    return {
        "batch": batch,
        "vocabulary": vocabulary,
        "without_us": round(median(a for a, _ in pairs), 1),
        "with_us": round(median(b for _, b in pairs), 1),
        "ratio": f"{median(ratios):.2f} ({ratios[0]:.2f}..{ratios[-1]:.2f}, n={ROUNDS})",
    }


def _step_us(step: Callable[[], None], device: str) -> float:
    steps = STEPS_GPU if device == "cuda" else STEPS_CPU
    began_s = time.perf_counter()
    for _ in range(steps):
        step()
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - began_s) / steps * 1e6


if __name__ == "__main__":
    main()
