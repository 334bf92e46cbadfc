"""An engine's log stays bounded and keeps its last lines; the lane is what UCX says of large writes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from disagg.logfile import ASKED_BYTES_MAX, ASKED_LINES_MAX, RETRY_S, RotatingLog, last_lines
from transfer.lane import LaneReader


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


def test_tables_of_ucx_are_read_and_not_kept_unless_asked_for(tmp_path: Path) -> None:
    row = b"[1795.6] [vm:1 :0]   |  0..inf | zero-copy | cma/memory |"
    for keep_tables in (False, True):
        path = tmp_path / f"{keep_tables}.log"
        log = RotatingLog(path, keep_tables=keep_tables)
        assert len(log.write(row + b"\nsomething else\n")) == 2
        log.close()
        assert path.read_bytes() == (row + b"\n" if keep_tables else b"") + b"something else\n"


def test_a_full_disk_loses_lines_and_nothing_else(tmp_path: Path) -> None:
    path, now_s = tmp_path / "engine.log", 0.0
    path.symlink_to("/dev/full")
    log = RotatingLog(path, now_s=lambda: now_s)
    assert log.write(b"lost\n") == ["lost"]
    assert "No space left on device" in log.trouble
    path.unlink()  # there is room again
    log.write(b"lost too: it is not tried at every line\n")
    now_s = RETRY_S + 1
    log.write(b"kept\n")
    log.close()
    assert log.trouble == ""
    note, kept = path.read_text().splitlines()
    assert note.startswith("[disagg] 45 bytes of this log were lost: No space left on device")
    assert kept == "kept"
    assert list(log.tail) == ["lost", "lost too: it is not tried at every line", "kept"]


def test_a_file_that_ends_within_a_line_goes_on_in_a_new_one(tmp_path: Path) -> None:
    """As a disk that fills up leaves it: here a limit on a file's size does."""
    program = f"""
import resource, signal
from pathlib import Path
from disagg.logfile import RotatingLog
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
now_s = 0.0
log = RotatingLog(Path({str(tmp_path / "engine.log")!r}), now_s=lambda: now_s)
resource.setrlimit(resource.RLIMIT_FSIZE, (10, resource.RLIM_INFINITY))
log.write(b"0123456789abcdef\\n")
assert "File too large" in log.trouble, log.trouble
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
now_s = 10.0
log.write(b"whole\\n")
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
    said = (tmp_path / "engine.log").read_text().splitlines()
    assert said[0] == "0123456789"
    assert said[1].startswith("[disagg] 7 bytes of this log were lost: File too large")
    assert said[2] == "whole"


@pytest.mark.parametrize("kind", ["a file above it", "a folder in its place"])
def test_a_path_that_cannot_be_a_log_is_told_and_the_tail_is_there(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "logs" / "engine.log"
    if kind == "a file above it":
        (tmp_path / "logs").write_text("")
    else:
        path.mkdir(parents=True)
    log = RotatingLog(path)
    log.write(b"said\n")
    log.close()
    assert str(tmp_path / "logs") in log.trouble
    assert list(log.tail) == ["said"]


def test_what_is_asked_for_is_bounded_in_bytes_too(tmp_path: Path) -> None:
    """An answer of more than 64 MiB would end the connection that it takes."""
    path = tmp_path / "engine.log"
    log = RotatingLog(path, max_bytes=6 << 20)
    for number in range(3000):
        log.write(b"%d " % number + b"\xff" * 3000 + b"\n")
    log.close()
    lines = last_lines(path, ASKED_LINES_MAX)
    assert ASKED_BYTES_MAX - 4000 < sum(len(line) + 1 for line in lines) <= ASKED_BYTES_MAX
    assert [line.partition(" ")[0] for line in lines] == [str(n) for n in range(3000 - len(lines), 3000)]


def test_a_line_without_an_end_is_bounded(tmp_path: Path) -> None:
    log = RotatingLog(tmp_path / "engine.log")
    for _ in range(100):
        log.write(b"x" * 10_000)
    log.close()
    assert (tmp_path / "engine.log").stat().st_size >= 1_000_000


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
