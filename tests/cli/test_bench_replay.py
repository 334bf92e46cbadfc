"""`disagg bench replay` on a simulated deployment: its table, its JSON and its picture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from disagg.cli.app import app
from disagg.errors import ConfigError, StartError
from disagg.replay.traces.trace import TraceError

TRACE = Path(__file__).parents[1] / "replay" / "data" / "mooncake-200.jsonl.gz"
CONFIG = """
version: 1
device: simulated
model: {path: smollm2}
prefill: {replicas: 2, engine: {kv_tokens: 400000, chunk_tokens: 8192, prefill_token_s: 2.0e-5}}
decode: {replicas: 2, engine: {kv_tokens: 400000}}
"""


def run(folder: Path, *words: str, config: str = CONFIG) -> str:
    (folder / "two.yaml").write_text(config)
    arguments = ["bench", "replay", str(TRACE), "--on", str(folder / "two.yaml"), "--requests", "60", *words]
    result = CliRunner().invoke(app, arguments, catch_exceptions=True)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


def test_policies_stand_side_by_side(tmp_path: Path) -> None:
    said, drawn = tmp_path / "figures.json", tmp_path / "figures.svg"
    words = ("--policy", "least_loaded", "--policy", "round_robin", "--load", "0.5", "--rate", "3", "--seeds", "2")
    output = run(tmp_path, *words, "--processes", "2", "--json", str(said), "--picture", str(drawn))
    assert "this deployment carries" in output
    assert "3/s: 3 requests/s, 2 seed(s); an endless cache would have" in output
    assert "load 0.5:" in output
    assert output.count("\nround_robin ") == 2
    tree = json.loads(said.read_text())
    assert len(tree["rows"]) == 2 * 2 * 2
    assert {row["policy"] for row in tree["rows"]} == {"least_loaded", "round_robin"}
    assert tree["capacity"] > 0
    assert drawn.read_text().startswith("<svg")


def test_a_policy_that_is_none_is_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="nosuch cannot be loaded"):
        run(tmp_path, "--policy", "nosuch")
    with pytest.raises(
        StartError, match="'prefil=random' of 'prefil=random' is no side and its policy; say prefill=NAME"
    ):
        run(tmp_path, "--policy", "prefil=random")


def test_a_deployment_that_is_not_simulated_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="device: is cpu; say `device: simulated`"):
        run(tmp_path, config="version: 1\ndevice: cpu\nmodel: {path: smollm2}\nprefill: {}\ndecode: {}\n")


def test_a_trace_none_of_whose_requests_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="has no request of at most 512 tokens"):
        run(tmp_path, config=CONFIG.replace("400000", "512"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "say --on CONFIG or --url URL"),
        (("--url", "http://127.0.0.1:1", "--policy", "random"), "go with --on"),
    ],
)
def test_what_does_not_go_together_is_refused(words: tuple[str, ...], said: str) -> None:
    result = CliRunner().invoke(app, ["bench", "replay", str(TRACE), *words])
    assert said in f"{result.output} {result.exception}"
