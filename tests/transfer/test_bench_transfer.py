"""`disagg bench transfer`: what is measured, what is told, and what is refused before anything starts."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest

from disagg.chart import chart
from disagg.cli.bench import size_of, size_word
from disagg.cli.main import main
from transfer.measure import Row, Spread, doubts, spread
from transfer.scatter import contiguous, scattered

Bench = Callable[[list[str]], tuple[int, str]]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Bench:
    """The command: its exit status, and all it says."""

    def run(arguments: list[str]) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["disagg", "bench", "transfer", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out + said.err

    return run


def test_no_two_scattered_pages_are_adjacent_on_either_side() -> None:
    pieces = scattered(1 << 20, 4096)
    assert len(pieces.ours) == 256
    assert sorted(pieces.ours) == sorted(pieces.theirs) == [2 * 4096 * page for page in range(256)]
    assert pieces.ours != pieces.theirs
    assert all(after - before != 4096 for side in (pieces.ours, pieces.theirs) for before, after in pairwise(side))
    assert scattered(5000, 4096).ours  # a part of a page is a page
    assert contiguous(5000) == ([0], [0], 5000)


def test_spread_and_the_cost_of_a_descriptor() -> None:
    assert spread([3.0]) == Spread(3.0, 3.0, 3.0)
    assert spread([float(value) for value in range(1, 12)]) == Spread(6.0, 2.0, 10.0)
    row = Row("scattered", 1 << 20, 256, Spread(0.512, 0.5, 0.6), 0.1, 2.0, 9.0)
    assert row.us_a_descriptor == 2.0


@pytest.mark.parametrize(
    ("transport", "on_gpu", "near", "word"),
    [
        ("cma", False, True, None),
        ("cuda_ipc", True, True, None),
        ("rc_mlx5", True, False, None),
        ("tcp", False, False, None),
        ("tcp", False, True, "TCP CARRIED IT"),
        ("cma+tcp", True, True, "TCP CARRIED IT"),
        ("tcp", True, False, "NO GPU LANE"),
        ("cma", True, True, "NO GPU LANE"),
        ("", False, True, "did not say"),
    ],
)
def test_a_bad_lane_is_loud(transport: str, on_gpu: bool, near: bool, word: str | None) -> None:
    said = list(doubts(transport, on_gpu=on_gpu, near=near))
    assert (not said) if word is None else word in said[0]


def test_sizes_are_read_and_written() -> None:
    assert [size_of(word) for word in ("65536", "64K", "64KiB", "1m", "1G")] == [65536, 65536, 65536, 1 << 20, 1 << 30]
    assert [size_word(size) for size in (100, 65536, 1 << 20, 3 << 29)] == ["100", "64K", "1M", "1.5G"]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--from", "a"], "both --from and --to"),
        (["--sizes", "1M,many"], "is no size"),
        (["--page-bytes", "0"], "is no size"),
        (["--ucx", "TLS=tcp"], "say UCX_KEY=VALUE"),
        (["--ucx", "UCX_TLS"], "say UCX_KEY=VALUE"),
        (["--rounds", "0"], "--rounds"),
        (["--memory", "disk"], "disk"),
        (["--layout", "scattered", "--sizes", "4K"], "no size is as large as a page"),
    ],
)
def test_mistakes_are_refused_before_anything_starts(bench: Bench, arguments: list[str], word: str) -> None:
    status, said = bench(arguments)
    assert status == 2
    assert word in said


def test_a_chart_is_svg_that_holds_every_line() -> None:
    root = ElementTree.fromstring(chart("a < b", {"x": [(1, 1), (100, 10)], "y": [(1, 2)]}, x_label="n", y_label="m"))
    lines = [element.get("points") for element in root.iter("{http://www.w3.org/2000/svg}polyline")]
    assert lines == ["70.0,370.0 570.0,40.0", "70.0,270.7"]
    with pytest.raises(ValueError, match="logarithmic"):
        chart("t", {"x": [(0, 1)]}, x_label="", y_label="")


@pytest.mark.engine
def test_a_real_transfer_between_two_processes(bench: Bench, tmp_path: Path) -> None:
    to = tmp_path / "out.json", tmp_path / "out.svg"
    arguments = ["--sizes", "64K,256K", "--rounds", "3", "--json", str(to[0]), "--picture", str(to[1])]
    status, said = bench(arguments)
    assert status == 0, said
    told = json.loads(to[0].read_text())
    assert [(row["layout"], row["bytes"], row["descriptors"]) for row in told["rows"]] == [
        ("contiguous", 65536, 1),
        ("contiguous", 262144, 1),
        ("scattered", 65536, 2),
        ("scattered", 262144, 8),
    ]
    assert all(row["ms"]["p10"] <= row["ms"]["median"] <= row["ms"]["p90"] for row in told["rows"])
    assert told["transport"]
    assert not told["fell_back_to_tcp"]
    assert told["transport"] in said
    ElementTree.parse(to[1])


@pytest.mark.engine
def test_a_scattered_size_need_not_be_whole_pages(bench: Bench) -> None:
    status, said = bench(["--layout", "scattered", "--sizes", "65K", "--page-bytes", "64K", "--rounds", "1"])
    assert status == 0, said


@pytest.mark.engine
def test_tcp_on_one_machine_is_said_loudly(bench: Bench, tmp_path: Path) -> None:
    to = tmp_path / "out.json"
    arguments = ["--sizes", "64K", "--layout", "contiguous", "--rounds", "1", "--ucx", "UCX_TLS=tcp", "--json", str(to)]
    status, said = bench(arguments)
    assert status == 0, said
    assert json.loads(to.read_text())["fell_back_to_tcp"]
    assert "WARNING: TCP CARRIED IT" in said


@pytest.mark.engine
@pytest.mark.nodes
def test_between_two_nodes_of_a_cluster() -> None:
    from ray.cluster_utils import Cluster

    from disagg.cluster.cluster_inspect import ends_on_cluster
    from disagg.errors import StartError
    from transfer.measure import measure

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        with (
            pytest.raises(StartError, match="has no node 'nowhere'") as refused,
            ends_on_cluster(cluster.address, ("nowhere", "nowhere"), (None, None), {}),
        ):
            pass
        shown = refused.value.would_do.removeprefix("say one of ").split(", ")
        names = [each.split(" (")[0] for each in shown]
        about = {"buffer_bytes": 1 << 20, "num_threads": 0, "env": {}}
        with ends_on_cluster(cluster.address, (names[0], names[1]), (None, None), about) as (writer, reader):
            rows = measure(writer, reader, [1 << 16], page_bytes={"contiguous": None}, rounds=1)
            assert writer.transport()
        assert rows[0].gbyte_s > 0
    finally:
        cluster.shutdown()
