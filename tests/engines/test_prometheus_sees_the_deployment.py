"""A real Prometheus with the files of `disagg deploy monitoring`, at a deployment whose engines are simulated."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from deployment import Deployment, serving
from streams import Stream, wait_until
from typer.testing import CliRunner

from disagg.cli.deploy import app
from disagg.cluster.ports import free_port

PROMETHEUS = shutil.which("prometheus") or ""
# Of these nothing happens here: no label of theirs has a value yet.
UNSEEN = ("disagg_failed", "disagg_refused", "disagg_trace_spans", "disagg_cache_events")


@contextmanager
def prometheus(folder: Path) -> Iterator[str]:
    """Its address."""
    file = folder / "prometheus.yml"
    said = yaml.safe_load(file.read_text())
    said["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    file.write_text(yaml.safe_dump(said))
    at = f"127.0.0.1:{free_port()}"
    words = [PROMETHEUS, "--config.file=prometheus.yml", "--storage.tsdb.path=data", f"--web.listen-address={at}"]
    with (folder / "log").open("wb") as log, subprocess.Popen(words, cwd=folder, stdout=log, stderr=log) as process:
        try:
            yield f"http://{at}"
        finally:
            process.terminate()
            process.wait(30)


def _ask(url: str, path: str, **query: str) -> Any:
    try:
        answer = httpx.get(f"{url}/api/v1/{path}", params=query, timeout=15, trust_env=False)
    except httpx.TransportError:
        return None
    assert answer.status_code == 200, answer.text
    return answer.json()["data"]


def _expressions(folder: Path) -> Iterator[str]:
    board = json.loads((folder / "grafana" / "dashboards" / "disagg.json").read_text())
    for panel in board["panels"]:
        for target in panel.get("targets", ()):
            yield target["expr"].replace("$__rate_interval", "30s").replace("$job", "disagg")


@pytest.mark.skipif(not PROMETHEUS, reason="needs prometheus")
def test_every_panel_has_something_and_alerts_know_of_a_killed_engine(tmp_path: Path) -> None:
    with serving("configs/simulated.yaml", "ray.address=local") as d:
        folder = tmp_path / "m"
        done = CliRunner().invoke(
            app, ["monitoring", "--target", d.url.removeprefix("http://"), "-o", str(folder)], catch_exceptions=False
        )
        assert done.exit_code == 0, done.output
        with prometheus(folder) as url:
            wait_until(lambda: (_ask(url, "query", query="disagg_ready") or {}).get("result"), 30)
            _some_traffic(d)
            wait_until(lambda: _ask(url, "query", query="sum(rate(disagg_ttft_seconds_count[30s])) > 0")["result"], 30)
            empty = [
                each
                for each in _expressions(folder)
                if not _ask(url, "query", query=each)["result"] and not any(name in each for name in UNSEEN)
            ]
            assert not empty
            (group,) = _ask(url, "rules")["groups"]
            assert {rule["health"] for rule in group["rules"]} == {"ok"}
            wait_until(lambda: "DisaggEngineRestarts" in _firing(url), 40)
            assert "DisaggDown" not in _firing(url)
        text = httpx.get(f"{d.url}/metrics", timeout=5, trust_env=False).text
        series = [line for line in text.splitlines() if not line.startswith("#")]
        assert len(series) < 600, "of four engines"
        assert not re.search(r"[0-9a-f]{32}", text), "an id of a request"


def _some_traffic(d: Deployment) -> None:
    streams = [Stream(d, [5, 6, 7 + number], 400) for number in range(4)]
    wait_until(lambda: all(len(stream.events) > 5 for stream in streams), 30)
    decode = d.get(f"/disagg/requests/{streams[0].request_id}")["decode"].partition("#")[0]
    os.kill(d.engine(decode)["pids"]["host"], signal.SIGKILL)
    for stream in streams:
        stream.whole(60)
    for _ in range(4):
        Stream(d, list(range(100, 400)), 20).whole(30)
    httpx.post(f"{d.url}/v1/completions", json={"model": "none"}, timeout=5, trust_env=False)


def _firing(url: str) -> set[str]:
    return {alert["labels"]["alertname"] for alert in _ask(url, "alerts")["alerts"] if alert["state"] == "firing"}
