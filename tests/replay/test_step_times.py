"""From a source's step times to a YAML of simulated engines."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import pytest

from disagg.errors import StartError
from disagg.load import load_config
from disagg.replay.deployment import pools_of
from disagg.replay.step_times.fit import Point, decode_point, fit, prefill_point
from disagg.replay.step_times.source import Layout, Memory, Source
from disagg.replay.step_times.yaml_file import fitted, yaml_of
from disagg.roles import Role
from disagg.simulated_engine.model import Model, pairs_of

TRUE = Model(
    role=Role.AGGREGATED,
    step_s=0.004,
    prefill_token_s=3e-5,
    prefill_attention_s=2e-9,
    step_leg_s=2e-5,
    step_context_s=4e-8,
)


class Measured:
    """A source whose engines are exactly as the model is."""

    model, gpu, layout, name = "a/model", "a_gpu", Layout(tp=2, dp=4), "the test"

    def prefill_s(self, tokens: int, before: int) -> float:
        return TRUE.chunk_s(tokens, pairs_of(tokens, before))

    def decode_s(self, legs: int, context_tokens: int) -> float:
        return TRUE.decode_step_s(legs, legs * context_tokens)

    def memory(self, chunk_tokens: int) -> Memory:
        return Memory(kv_tokens=200_010, kv_bytes_per_token=98_304)


def test_a_fit_finds_what_the_times_were_made_of() -> None:
    found = fitted(Measured(), 8192)
    assert found.prefill.coefficients == pytest.approx((0.004, 3e-5, 2e-9))
    assert found.decode.coefficients == pytest.approx((0.004, 2e-5, 4e-8))
    assert max(found.prefill.error_max, found.decode.error_max) < 1e-6


def test_no_coefficient_is_negative_and_the_error_is_told() -> None:
    found = fit([decode_point(legs, 1000, 0.010 - 1e-5 * legs) for legs in (1, 10, 100, 200)])
    assert min(found.coefficients) >= 0
    assert found.error_max > 0.05


def test_too_few_points_are_refused() -> None:
    with pytest.raises(ValueError, match="2 points for 3 coefficients"):
        fit([prefill_point(100, 0, 0.01), Point((1.0, 2.0, 3.0), 0.02)])


def test_the_yaml_is_a_deployment_with_these_times(tmp_path: Path) -> None:
    source = Measured()
    engines = {Role.PREFILL: 3, Role.DECODE: 2, Role.AGGREGATED: 1}
    lane = {"transfer_setup_s": 0.002, "transfer_bytes_per_s": 4e10}
    text = yaml_of(source, fitted(source, 4096), engines, 4096, lane)
    assert "# Source: the test; written by `disagg bench step-times`." in text
    assert "off by 0.0% in the median" in text
    (tmp_path / "timed.yaml").write_text(text)
    prefill, decode, aggregated = pools_of(load_config(tmp_path / "timed.yaml"))
    assert (prefill.engines, decode.engines, aggregated.engines) == (3, 2, 1)
    assert (prefill.model.ranks, prefill.model.kv_tokens, prefill.model.chunk_tokens) == (4, 200_000, 4096)
    assert prefill.model.chunk_s(4096, pairs_of(4096, 0)) == pytest.approx(TRUE.chunk_s(4096, pairs_of(4096, 0)), 1e-3)
    for pool in (decode, aggregated):
        assert pool.model.decode_step_s(8, 9000) == pytest.approx(TRUE.decode_step_s(8, 9000), 1e-3)


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    really = builtins.__import__

    def without(name: str, *arguments: Any) -> Any:
        if name.startswith("aiconfigurator"):
            raise ModuleNotFoundError(f"No module named {name!r}")
        return really(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(StartError, match=r"pip install '\.\[planner\]'"):
        Source("Qwen/Qwen3-8B", "h200_sxm", Layout())
