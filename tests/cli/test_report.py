"""`disagg report`: all that can be had is in it, and no key is."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from disagg.cli import report
from disagg.cli.app import app
from disagg.cli.report import without_secrets

STATUS = {
    "model": "m",
    "ready": True,
    "engines": [],
    "frontend": {"queued": 0, "live": [{"id": "00001234"}]},
}
ENGINE = dict(
    id="decode-0", role="decode", state="ready", incarnation=1, since=0.0, detail="", restarts=0, lane="", devices=""
)
KEY, PASSWORD = "admin-key-0123456789", "a-password-of-somebody"
REVISIONS = {
    "revisions": [{"number": 1, "config": f"env:\n  proxy: http://me:{PASSWORD}@proxy:80\n  HF_TOKEN: {PASSWORD}\n"}]
}


class Frontend:
    """Answers instead of the network."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        engine = {**ENGINE, "switched_off": [], "peers": ["prefill-0#1"]}
        self.answers: dict[str, httpx.Response] = {
            "/disagg/status": httpx.Response(200, json={**STATUS, "engines": [engine]}),
            "/disagg/loads": httpx.Response(200, json={}),
            "/metrics": httpx.Response(200, text=""),
            "/disagg/logs/decode-0": httpx.Response(200, text=f"a line\nsent with {KEY}\n"),
            "/disagg/requests/00001234": httpx.Response(200, json={"phase": "decoding"}),
            "/disagg/requests/said": httpx.Response(404, json={"error": {"message": "no such request"}}),
        }
        self.answers["/disagg/revisions"] = httpx.Response(200, json=REVISIONS)
        chapter = {"number": 0, "at_s": 0.0, "kind": "dead", "subjects": ["decode-0"], "count": 1, "detail": ""}
        self.snapshot = {"type": "snapshot", "story": [chapter]}
        monkeypatch.setattr(report, "follow", self._follow)
        monkeypatch.delenv("DISAGG_URL", raising=False)
        monkeypatch.setattr(httpx, "request", self._request)

    @contextmanager
    def _follow(self, _url: str | None) -> Iterator[Iterator[dict[str, Any]]]:
        yield iter([self.snapshot])

    def _request(self, _method: str, url: str, **_: Any) -> httpx.Response:
        try:
            return self.answers[url.removeprefix("http://127.0.0.1:8000")]
        except KeyError:
            raise httpx.ConnectError("refused") from None


def read(path: Path) -> dict[str, str]:
    with tarfile.open(path) as archive:
        files = {entry.name.partition("/")[2]: archive.extractfile(entry) for entry in archive.getmembers()}
        return {name: file.read().decode() for name, file in files.items() if file is not None}


def test_what_is_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Frontend(monkeypatch)
    monkeypatch.setenv("DISAGG_API_KEY", KEY)
    out = tmp_path / "r.tar.gz"
    said = CliRunner().invoke(app, ["report", str(out), "--config", "simulated", "--request", "said"])
    assert said.exit_code == 0, said.output
    files = read(out)
    assert set(files) == {
        "versions.txt", "machine.txt", "configuration.json", "status.json", "loads.json", "metrics.txt", "doctor.txt",
        "events.txt", "revisions.json", "requests/00001234.json", "logs/decode-0.txt", "missing.txt",
    }  # fmt: skip
    assert "ray 2" in files["versions.txt"]
    assert "does not say its load" in files["doctor.txt"]
    assert files["events.txt"].endswith("decode-0 died\n")
    assert "proxy:80" in files["revisions.json"]
    assert PASSWORD not in files["revisions.json"]
    assert "requests/said.json" in files["missing.txt"]
    assert files["logs/decode-0.txt"].startswith("a line\n")
    assert not any(KEY in text for text in files.values())


def test_where_nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Frontend(monkeypatch).answers.clear()
    out = tmp_path / "r.tar.gz"
    said = CliRunner().invoke(app, ["report", str(out), "--config", "local-cpu"])
    assert said.exit_code == 0
    assert set(read(out)) == {"versions.txt", "machine.txt", "configuration.json", "missing.txt"}
    assert "all of the deployment: http://127.0.0.1:8000: no frontend answers" in said.output


def test_an_archive_that_is_there_already_is_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Frontend(monkeypatch)
    out = tmp_path / "r.tar.gz"
    out.write_text("mine")
    assert CliRunner().invoke(app, ["report", str(out)]).exit_code == 1
    assert out.read_text() == "mine"


def test_keys_of_a_configuration_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Frontend(monkeypatch)
    sets = [f"security.api_keys=[{KEY}x]", f"prefill.env.HF_TOKEN={KEY}y", "prefill.env.NAME=kept"]
    words = [word for each in sets for word in ("--set", each)]
    CliRunner().invoke(app, ["report", str(tmp_path / "r.tar.gz"), "--config", "simulated", *words])
    told = read(tmp_path / "r.tar.gz")["configuration.json"]
    assert KEY not in told
    assert "kept" in told
    assert json.loads(told)["prefill"]


def test_numbers_and_lists_stay() -> None:
    tree = {"max_tokens": 7, "keys": [{"api_key": "x"}, "kept"], "kv_token": "x"}
    assert without_secrets(tree) == {"max_tokens": 7, "keys": [{"api_key": "left out"}, "kept"], "kv_token": "left out"}
