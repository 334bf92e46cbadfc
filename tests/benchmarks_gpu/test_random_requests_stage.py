"""The stage's own part: what it finds becomes a row that can be written, and only a whole row passes."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from benchmarks.gpu import random_requests as stage
from benchmarks.gpu.places import CPU
from benchmarks.gpu.servers import Server
from benchmarks.random_requests import Result

SERVER = Server("random", "http://127.0.0.1:1", "/ready", 1, 0.0, 0.0)


@pytest.mark.parametrize(
    ("failed", "died", "poison", "nan", "passes"),
    [
        ({}, False, True, True, True),
        ({"503 no_ready_pair": 1}, False, True, True, False),
        ({}, True, True, True, False),
        ({}, False, False, True, False),
        ({}, False, True, False, False),
    ],
)
async def test_a_row_passes_whole_or_not_at_all(
    monkeypatch: pytest.MonkeyPatch, failed: dict[str, int], died: bool, poison: bool, nan: bool, passes: bool
) -> None:
    lives = iter(({"decode-0": 1, "prefill-0": 1}, {"decode-0": 1 + died, "prefill-0": 1}))

    async def campaign(*_: Any) -> Result:
        answered = 10 - 3 - sum(failed.values())
        return Result(10, answered, Counter({"seed ignored_parameter": 3}), Counter(failed), answer_s=[0.5, 0.1])

    async def told(**answer: Any) -> dict[str, Any]:
        return answer

    monkeypatch.setattr(stage, "campaign", campaign)
    monkeypatch.setattr(stage, "incarnations", lambda _server: next(lives))
    monkeypatch.setattr(stage, "_poison", lambda _server: told(refused_by_name=poison))
    monkeypatch.setattr(stage, "_not_a_number", lambda _it, _server: told(passed=nan))
    row = await stage._ask(CPU, SERVER)
    assert row["passed"] is passes
    assert json.loads(json.dumps(row))["refused"] == {"seed ignored_parameter": 3}
    assert row["died"] == ({"decode-0": 1} if died else {})
    assert "seed ignored_parameter" in stage._table(row)


def test_a_backend_that_cannot_be_brought_here_leaves_its_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    written: dict[str, Any] = {}
    monkeypatch.setattr(stage, "LOGS", tmp_path)
    monkeypatch.setattr(stage, "COMPILE", "raise SystemExit('nvcc: not found')")
    monkeypatch.setattr(stage, "results_path", lambda name: tmp_path / name)
    monkeypatch.setattr(stage, "write_result", lambda _name, found: written.update(found))
    monkeypatch.setattr("sys.argv", ["random_requests", "flashinfer"])
    assert stage.main() == 1
    assert "nvcc: not found" in written["flashinfer"]["reason"]
    assert "nvcc: not found" in capsys.readouterr().out
