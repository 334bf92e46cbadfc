"""`disagg deploy` at the command line: 2 for what is wrong with the command or the configuration, and no traceback."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from disagg.cli.main import main


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> object:
    monkeypatch.setattr(sys, "argv", ["disagg", *words])
    with pytest.raises(SystemExit) as end:
        main()
    return end.value.code


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["deploy", "k8s", "two-gpus", "--shm-gib", "0"], "--shm-gib"),
        (["deploy", "slurm"], "config"),
        (["deploy", "slurm", "two-gpus", "--no-such-option"], "--no-such-option"),
        (["deploy", "slurm", "nonsense"], "is not a file"),
        (["deploy", "docker", "two-gpus", "--set", "frontend.port=x"], "frontend.port"),
    ],
)
def test_a_wrong_command_ends_with_2_and_says_what(
    words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, *words) == 2
    out, err = capsys.readouterr()
    assert said in err
    assert out == ""


def test_a_file_that_cannot_be_written_ends_with_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert run(monkeypatch, "deploy", "slurm", "two-gpus", "-o", str(tmp_path / "file" / "job.sh")) == 1
    assert "cannot be written" in capsys.readouterr().err
