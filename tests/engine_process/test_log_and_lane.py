"""An engine's log stays bounded and keeps its last lines; the lane is what UCX says of large writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from disagg.engine.lane import LaneReader
from disagg.engine.logfile import RotatingLog, last_lines


def test_a_log_is_bounded_and_its_last_lines_span_generations(tmp_path: Path) -> None:
    path = tmp_path / "engine.log"
    log = RotatingLog(path, max_bytes=1000)
    for number in range(200):
        log.write(f"line {number}\n".encode())
    log.close()
    assert path.stat().st_size <= 1000
    assert (tmp_path / "engine.log.1").stat().st_size <= 1000
    assert last_lines(path, 120)[-1] == "line 199"
    assert len(last_lines(path, 120)) == 120
    assert list(log.tail)[-1] == "line 199"


def test_lines_are_whole_however_the_output_is_cut(tmp_path: Path) -> None:
    log = RotatingLog(tmp_path / "engine.log")
    assert log.write(b"a wh") == []
    assert log.write(b"ole line\nand") == ["a whole line"]
    assert log.write(b" more\n") == ["and more"]
    log.write(b"[1795.6] [vm:1 :0]   |  0..inf | zero-copy | cma/memory |\n")
    assert list(log.tail) == ["a whole line", "and more"]
    log.close()


def table(*rows: tuple[str, str]) -> list[str]:
    head = "[1.5] [vm:1 :0]   | remote memory write by ucp_put* from host memory to host |"
    return [head, *(f"[1.5] [vm:1 :0]   | {size} | zero-copy | {where} |" for size, where in rows)]


@pytest.mark.parametrize(
    ("lines", "lane"),
    [
        (table(("0..inf", "cma/memory")), "cma"),
        (table(("0..8K", "posix/memory"), ("8K..inf", "cuda_ipc/cuda")), "cuda_ipc"),
        (table(("0..inf", "50% on rc_mlx5/mlx5_0:1 and 50% on rc_mlx5/mlx5_1:1")), "rc_mlx5"),
        (table(("0..inf", "tcp/lo")), "tcp"),
        (["[1.5] [vm:1 :0]   | active message by ucp_am_send* |", "| 0..inf | multi | tcp/lo |"], None),
        (["nothing of UCX"], None),
    ],
)
def test_lane(lines: list[str], lane: str | None) -> None:
    reader = LaneReader(gpu=False)
    assert [found for line in lines if (found := reader.read(line))] == ([lane] if lane else [])


def test_on_a_gpu_only_what_writes_its_memory_is_the_lane() -> None:
    """As a prefill on an H200 said it, before and after its first transfer."""
    host = [
        "| remote memory write by ucp_put*(multi) from host memory to host |",
        "| 0..inf | zero-copy | cma/memory |",
    ]
    to_gpu = [
        "| remote memory write by ucp_put* from host memory to cuda |",
        "| 0..4294967295 | short | cuda_copy/cuda |",
        "| 4G..inf | (?) | tcp/lo |",
    ]
    between = [
        "| remote memory write by ucp_put*(multi) from cuda/GPU0 to cuda/dev[1] |",
        "| 0..inf | zero-copy | cuda_ipc/cuda |",
    ]
    reader = LaneReader(gpu=True)
    assert [reader.read(line) for line in host + to_gpu] == [None] * 5
    assert [found for line in between + host if (found := reader.read(line))] == ["cuda_ipc"]
