"""The parts of the GPU harness that can break without a GPU to show it."""

from __future__ import annotations

from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import pytest
import yaml
from tokenizers import Tokenizer

from benchmarks.gpu import report
from benchmarks.gpu.asking import pair_requests
from benchmarks.gpu.bundle import cut
from benchmarks.gpu.metadata import write_metadata
from benchmarks.gpu.places import CPU, GPU, PROJECT, TWO_GPUS
from benchmarks.gpu.shape import SHAPES, make_shape
from benchmarks.gpu.statistics import latencies, percentile
from benchmarks.prompts import random_prompts


def test_pieces_give_the_files_back_and_the_first_file_comes_first(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(range(250)))
    (tmp_path / "b").write_bytes(b"x" * 333)
    cut([(tmp_path / "a", "site"), (tmp_path / "b", "wheel")], tmp_path / "out", part_bytes=100)
    parts = sorted((tmp_path / "out").iterdir())
    assert [part.name for part in parts] == [f"p{i}" for i in range(7)]
    assert all(sum(p.stat().st_size for p in part.glob("*.[0-9]*")) <= 100 for part in parts)
    for name, source in (("site", "a"), ("wheel", "b")):
        pieces = sorted((tmp_path / "out").glob(f"*/{name}.[0-9]*"), key=lambda path: path.name)
        assert b"".join(piece.read_bytes() for piece in pieces) == (tmp_path / source).read_bytes()
        size = int((tmp_path / "out" / "p0" / f"{name}.size").read_text())
        assert size == (tmp_path / source).stat().st_size


def test_a_checkout_gets_the_plugins_of_an_installed_package(tmp_path: Path) -> None:
    write_metadata(tmp_path)
    found = {e.name: e.value for d in distributions(path=[str(tmp_path)]) for e in d.entry_points}
    assert found["disagg_transfer"] == "disagg.sglang.plugins.transfer:activate"
    assert found["disagg_gpu_bench"] == "benchmarks.gpu.shape:activate"


def test_every_token_of_a_shape_is_text_by_itself(tmp_path: Path) -> None:
    """Else a step of a stream could be an event without text, and a first token would be taken for late."""
    tokenizer = Tokenizer.from_file(str(make_shape("tiny", tmp_path / "tiny") / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == SHAPES["tiny"]["vocab_size"]
    texts = [tokenizer.decode([i]) for i in range(0, tokenizer.get_vocab_size(), 97)]
    assert all(text.strip().isascii() and text.strip() for text in texts)
    assert len(set(texts)) == len(texts)
    assert tokenizer.decode([5, 6]) != tokenizer.decode([5])


def test_prompts_are_the_same_for_a_seed_and_share_no_beginning() -> None:
    prompts = random_prompts("seed", 20, 16, 4096)
    assert prompts == random_prompts("seed", 20, 16, 4096)
    assert len({tuple(prompt[:4]) for prompt in prompts}) == 20


def test_both_legs_of_a_pair_meet_in_one_room_and_pairs_in_different_ones() -> None:
    urls = ("http://127.0.0.1:1", "http://127.0.0.1:2")
    pairs = list(pair_requests(urls, 9, [[1, 2], [3, 4]], 8, "seed"))
    bodies = [tuple(leg.partition(b"\r\n\r\n")[2] for leg in pair) for pair in pairs]
    assert all(prefill == decode and b'"bootstrap_port": 9' in prefill for prefill, decode in bodies)
    assert bodies[0] != bodies[1]


@pytest.mark.parametrize("profile", [GPU, TWO_GPUS, CPU], ids=["gpu", "two gpus", "cpu"])
def test_the_longest_prompt_fits_the_pool(profile: Any) -> None:
    longest = max(profile.burst.burst_prompt, *(cell.prompt + cell.output for cell in profile.cells))
    assert longest < profile.shape_engine["max_total_tokens"]
    assert longest < SHAPES[profile.shape]["max_position_embeddings"]


def test_what_is_measured_is_what_is_shipped() -> None:
    shipped = yaml.safe_load((PROJECT / "configs" / "one-gpu.yaml").read_text(encoding="utf-8"))
    for role in ("prefill", "decode"):
        engine = shipped[role]["engine"]
        ours = {"mem_fraction_static", "max_total_tokens", "chunked_prefill_size", "load_format"}  # six on one card
        assert {k: v for k, v in GPU.shape_engine.items() if k not in ours} == {
            k: v for k, v in engine.items() if k not in ours
        }
        assert engine["cuda_graph_max_bs_decode"] == engine["max_running_requests"]


def test_percentiles_lie_between_their_neighbours() -> None:
    assert percentile([4.0, 1.0, 3.0, 2.0], 0.5) == 2.5
    assert percentile([7.0], 0.99) == 7.0
    assert latencies([]) == {}
    assert latencies([0.001, 0.003])["max"] == 3.0


def _row(setup: str, number: int, tok_s: float) -> dict[str, Any]:
    times = {"p50": 10.0 + number, "p99": 20.0, "max": 30.0}
    row = {"what": "c1 8/4", "round": number, "setup": setup, "errors": 0, "tok_s": tok_s}
    return row | {"ttft_ms": times, "itl_ms": times}


def test_ours_is_set_against_bare_round_by_round() -> None:
    rows = [_row("b", 0, 100.0), _row("c", 0, 50.0), _row("c", 1, 220.0), _row("b", 1, 200.0)]
    rows.append(_row("a", 0, 10.0) | {"errors": 2})
    lines = list(report._against_bare({"compare": rows}))
    assert "0.80 (0.50..1.10)" in lines[2]
    assert "- |" in lines[2]  # a had errors, d is not there
    assert report.spread([1.0, 3.0, 2.0]) == "2.00 (1.00..3.00)"
