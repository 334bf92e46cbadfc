"""`disagg model get` takes what `model.path` takes, and says what would do where it cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from disagg.cli.app import app
from disagg.models.resolve import resolve_model


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, str | None]]:
    """What reaches the hub; its answer is a folder of the test."""
    hub = pytest.importorskip("huggingface_hub")
    asked: list[tuple[str, str | None]] = []

    def snapshot_download(hub_id: str, revision: str | None = None) -> str:
        asked.append((hub_id, revision))
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    monkeypatch.setenv("DISAGG_CACHE", str(tmp_path / "cache"))
    return asked


def get(*words: str) -> Any:
    return CliRunner().invoke(app, ["model", "get", *words])


def test_a_hub_id_comes_from_the_hub_as_serve_has_it(asked: list[tuple[str, str | None]], tmp_path: Path) -> None:
    done = get("owner/model", "--revision", "abc")
    assert (done.exit_code, done.stdout.strip()) == (0, str(tmp_path)), done.output
    assert resolve_model("owner/model", "abc") == tmp_path
    assert asked == [("owner/model", "abc")] * 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("smollm",), "did you mean smollm2?"),
        (("llama",), "say one of smollm2, or owner/name"),
        (("a/b/c",), "is no model that `disagg model list` shows, and no hub id"),
        (("tiny-dsv3",), "is made here, not fetched; run `disagg model make-tiny dsv3`"),
        (("smollm2", "--revision", "main"), "only a hub id has revisions; leave out --revision"),
        (("owner/model", "--verify"), "its files' hashes are not known here; leave out --verify"),
    ],
)
def test_what_cannot_be_fetched_is_told_with_what_would_do(
    words: tuple[str, ...], said: str, asked: list[tuple[str, str | None]]
) -> None:
    done = get(*words)
    assert done.exit_code == 1
    assert said in done.stderr
    assert asked == []
