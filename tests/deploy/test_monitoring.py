"""`disagg deploy monitoring`: Prometheus and Grafana take its files, and its alerts come when they should."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import generate_latest
from rendered import deploy, refused

from disagg.telemetry.metrics import FrontendMetrics

PROMTOOL = shutil.which("promtool") or ""
needs_promtool = pytest.mark.skipif(not PROMTOOL, reason="needs promtool (Debian: prometheus)")
TITLES_MAX = 60


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    deploy("monitoring", "--target", "head:8000", "--target", "[::1]:9000", "--out", tmp_path / "m")
    return tmp_path / "m"


def _dashboard(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "grafana" / "dashboards" / "disagg.json").read_text())
    return found


def _rules(folder: Path) -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((folder / "disagg-rules.yml").read_text())["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def _expressions(folder: Path) -> list[str]:
    of_panels = [target["expr"] for panel in _dashboard(folder)["panels"] for target in panel.get("targets", ())]
    return of_panels + [rule["expr"] for rule in _rules(folder)]


def test_every_metric_is_one_of_a_frontends(folder: Path) -> None:
    metrics = FrontendMetrics()
    text = generate_latest(metrics.up_to_date(metrics.figures({}, {}), [], {}, {}, {})).decode()
    told = {"disagg_engine_metrics", *re.findall(r"^# TYPE (\w+)", text, re.MULTILINE)}
    named = {name for each in _expressions(folder) for name in re.findall(r"\bdisagg_\w+", each)}
    assert {re.sub(r"_(bucket|sum|count)$", "", name) for name in named} - told == set()
    assert len(named) > 25


def test_prometheus_is_told_where_frontends_are_and_by_which_key(tmp_path: Path, folder: Path) -> None:
    (scrape,) = yaml.safe_load((folder / "prometheus.yml").read_text())["scrape_configs"]
    assert scrape["static_configs"] == [{"targets": ["head:8000", "[::1]:9000"]}]
    assert (scrape["scheme"], "authorization" in scrape) == ("http", False)
    more = ("--key-file", "/etc/key", "--https", "--ca", "/etc/ca.pem", "--ttft-p99-s", "2.5")
    deploy("monitoring", *more, "-o", tmp_path / "n")
    (scrape,) = yaml.safe_load((tmp_path / "n" / "prometheus.yml").read_text())["scrape_configs"]
    assert scrape["static_configs"] == [{"targets": ["127.0.0.1:8000"]}]
    assert scrape["authorization"] == {"type": "Bearer", "credentials_file": "/etc/key"}
    assert (scrape["scheme"], scrape["tls_config"]) == ("https", {"ca_file": "/etc/ca.pem"})
    deploy("monitoring", "--engine-metrics", "--https", "-o", tmp_path / "o")
    frontends, engines = yaml.safe_load((tmp_path / "o" / "prometheus.yml").read_text())["scrape_configs"]
    assert engines == frontends | {"job_name": "disagg-engines", "metrics_path": "/metrics/engines"}
    (slow,) = [rule for rule in _rules(tmp_path / "n") if rule.get("alert") == "DisaggFirstTokenSlow"]
    assert slow["expr"].endswith("> 2.5")


def test_what_cannot_be_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    wrong = ("--target", "head", "--ca", "/ca", "--ttft-p99-s", "0", "--prometheus", "there", "-o", tmp_path / "m")
    assert set(refused("monitoring", *wrong)) == {"--target", "--ca", "--ttft-p99-s", "--prometheus"}
    assert not (tmp_path / "m").exists()


def test_a_limit_that_no_first_token_is_told_to_exceed_is_refused(tmp_path: Path) -> None:
    assert set(refused("monitoring", "--ttft-p99-s", "120", "-o", tmp_path / "m")) == {"--ttft-p99-s"}
    deploy("monitoring", "--ttft-p99-s", "119", "-o", tmp_path / "m")


def test_the_dashboard_has_the_shape_that_grafana_takes(folder: Path) -> None:
    board = _dashboard(folder)
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) > 20
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
        assert panel["type"] in ("row", "timeseries", "stat", "table")
        assert len(panel["title"]) < TITLES_MAX
        assert panel["type"] == "row" or panel["targets"]
    variables = {each["name"] for each in board["templating"]["list"]}
    used = {name for each in _expressions(folder) for name in re.findall(r"\$(?!__)(\w+)", each)}
    assert used <= variables
    sources = yaml.safe_load((folder / "grafana/provisioning/datasources/prometheus.yaml").read_text())
    assert sources["datasources"][0]["type"] == "prometheus"
    providers = yaml.safe_load((folder / "grafana/provisioning/dashboards/disagg.yaml").read_text())
    assert providers["providers"][0]["options"]["path"] == "/var/lib/grafana/dashboards"


@needs_promtool
def test_prometheus_takes_its_configuration_and_its_rules(folder: Path) -> None:
    for what in (["config", "prometheus.yml"], ["rules", "disagg-rules.yml"]):
        done = subprocess.run([PROMTOOL, "check", *what], cwd=folder, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr


def _series(name: str, values: str, **labels: str) -> dict[str, str]:
    said = ", ".join(f'{label}="{value}"' for label, value in {"job": "disagg", **labels}.items())
    return {"series": f"{name}{{{said}}}", "values": values}


def _ttft(below_1_s: str) -> list[dict[str, str]]:
    of_bounds = {"1.0": below_1_s, "10.0": "0+100x60", "+Inf": "0+100x60"}
    return [_series("disagg_ttft_seconds_bucket", values, le=le) for le, values in of_bounds.items()]


GPU, TCP = {"device": "gpu", "node": "n", "engine": "decode-0"}, {"device": "cpu", "node": "n", "engine": "decode-0"}
RANK = {"dp_rank": "0", "kind": "output"}
PACES = {"small": 3000, "large": 900}
_FAILING = [_series("disagg_requests_total", "0+10x60", phase=phase) for phase in ("failed", "finished")]
CASES: dict[str, tuple[list[dict[str, str]], ...]] = {  # the first alerts, the others do not
    "DisaggDown": ([_series("up", "0x60")], [_series("up", "1x60")]),
    "DisaggNoReadyPair": ([_series("disagg_ready", "0x60")], [_series("disagg_ready", "1x60")]),
    "DisaggEngineNotReady": (
        [  # on its way again and again, and never there
            _series("disagg_engine_state", "1x7 stale _x7 1x7 stale _x30", engine="e", state="starting"),
            _series("disagg_engine_state", "_x8 1x7 stale _x7 1x7", engine="e", state="proving"),
        ],
        [_series("disagg_engine_state", "1x60", engine="e", state="ready")],
    ),
    "DisaggEngineRestarts": (
        [_series("disagg_engine_restarts", "0x25 1x35", engine="e")],
        [_series("disagg_engine_restarts", "3x60", engine="e")],
    ),
    "DisaggEngineRestartsAgainAndAgain": (
        [_series("disagg_engine_restarts", "0x15 1x4 2x4 3x4 4x30", engine="e")],
        [_series("disagg_engine_restarts", "0x25 1x35", engine="e")],
    ),
    "DisaggFirstTokenSlow": (_ttft("0+90x60"), _ttft("0+100x60")),
    "DisaggKvFull": (
        [_series("disagg_kv_tokens_taken", "98x60", engine="e"), _series("disagg_kv_tokens", "100x60", engine="e")],
        [_series("disagg_kv_tokens_taken", "9x60", engine="e"), _series("disagg_kv_tokens", "100x60", engine="e")],
    ),
    "DisaggRequestsFail": (
        [*_FAILING, _series("disagg_failed_total", "0+10x60", error="LegLost")],
        [_series("disagg_requests_total", "0+10x60", phase="finished")],
        [
            *_FAILING,
            *(
                _series("disagg_failed_total", "0+3x60", error=error)
                for error in ("Overloaded", "NotAccepted", "NoAdapter")
            ),
        ],
        [  # one of a hundred, of another model
            _series("disagg_requests_total", "0+100x60", phase="finished", model="a"),
            _series("disagg_requests_total", "0+10x60", phase="finished", model="b"),
            _series("disagg_failed_total", "0+1x60", error="LegLost", model="a"),
        ],
    ),
    "DisaggOverloaded": (
        [_series("disagg_errors_total", "0+5x60", code="overloaded")],
        [_series("disagg_errors_total", "0+5x60", code="invalid_value")],
    ),
    "DisaggLaneFellToTcp": (
        [_series("disagg_engine_info", "1x60", lane="rdma+tcp", **GPU)],
        [
            _series("disagg_engine_info", "1x60", lane="tcp", **TCP),
            _series("disagg_engine_info", "1x60", lane="rdma", **GPU),
        ],
    ),
    "DisaggRankSlow": (
        [
            *(
                _series("disagg_rank_tokens_total", f"0+{3000 if n else 900}x60", engine=f"d-{n}", **RANK)
                for n in range(3)
            ),
            *(_series("disagg_rank_requests", "4x60", engine=f"d-{n}", dp_rank="0") for n in range(3)),
        ],
        [
            *(_series("disagg_rank_tokens_total", f"0+{3000 + n}x60", engine=f"d-{n}", **RANK) for n in range(3)),
            *(_series("disagg_rank_requests", "4x60", engine=f"d-{n}", dp_rank="0") for n in range(3)),
        ],
        [  # another model's pace is its own
            *(
                _series("disagg_rank_tokens_total", f"0+{pace}x60", engine=f"{model}-d-{n}", model=model, **RANK)
                for model, pace in PACES.items()
                for n in range(2)
            ),
            *(
                _series("disagg_rank_requests", "4x60", engine=f"{model}-d-{n}", model=model, dp_rank="0")
                for model in PACES
                for n in range(2)
            ),
        ],
    ),
    "DisaggEngineMetricsMissing": (
        [_series("disagg_engine_metrics", "0x60", engine="e")],
        [_series("disagg_engine_metrics", "1x60", engine="e"), _series("up", "0x60")],
    ),
    "DisaggSpansDropped": (
        [_series("disagg_trace_spans_total", "0+5x60", outcome="dropped")],
        [_series("disagg_trace_spans_total", "0+5x60", outcome="sent")],
    ),
}
AT = 30  # minutes


def test_every_alert_has_a_case(folder: Path) -> None:
    assert {rule["alert"] for rule in _rules(folder) if "alert" in rule} == set(CASES)
    for rule in _rules(folder):
        assert "alert" not in rule or rule["annotations"].keys() == {"summary", "description"}


@needs_promtool
def test_a_frontend_that_begins_anew_makes_no_rate_jump(folder: Path) -> None:
    """The dashboard's own expressions: one of two frontends has just been started again."""
    counts = {"0": "0+60x40", "1": "0+60x20 0+60x20"}  # a request a second each
    by_bucket = {"0.25": counts, "+Inf": counts}
    series = [_series("disagg_requests_total", each, phase="finished", frontend=n) for n, each in counts.items()]
    for le, of_each in by_bucket.items():
        series += [_series("disagg_ttft_seconds_bucket", each, frontend=n, le=le) for n, each in of_each.items()]
    panels = {panel["title"]: panel for panel in _dashboard(folder)["panels"]}
    asked = []
    for panel, labels, low, high in (("Ended", '{phase="finished"}', 1.5, 2.1), ("First token", "{}", 0.1, 0.25)):
        expression = panels[panel]["targets"][0]["expr"].replace("$__rate_interval", "5m").replace("$job", "disagg")
        is_right = f"({expression}) >= bool {low} and ({expression}) <= bool {high}"
        asked += [
            {"expr": is_right, "eval_time": f"{m}m", "exp_samples": [{"labels": labels, "value": 1}]}
            for m in (20, 21, 23)
        ]
    test = {"interval": "1m", "input_series": series, "promql_expr_test": asked}
    (folder / "test.yml").write_text(yaml.safe_dump({"evaluation_interval": "1m", "tests": [test]}))
    done = subprocess.run(
        [PROMTOOL, "test", "rules", "test.yml"], cwd=folder, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_alerts_come_when_they_should_and_only_then(folder: Path) -> None:
    """Each case alone: what fires after AT minutes of it, by Prometheus' own engine."""
    fired: dict[str, list[str]] = {}
    for alert, cases in CASES.items():
        for number, series in enumerate(cases):
            is_bad = number == 0
            asked = [
                {
                    "expr": f'count by (alertname) (ALERTS{{alertstate="firing", alertname="{alert}"}})',
                    "eval_time": f"{AT}m",
                }
            ]
            if is_bad:
                asked[0]["exp_samples"] = [{"labels": f'{{alertname="{alert}"}}', "value": 1}]  # type: ignore[assignment]
            test = {"interval": "1m", "input_series": series, "promql_expr_test": asked}
            file = folder / "test.yml"
            file.write_text(
                yaml.safe_dump({"rule_files": ["disagg-rules.yml"], "evaluation_interval": "1m", "tests": [test]})
            )
            done = subprocess.run(
                [PROMTOOL, "test", "rules", "test.yml"], cwd=folder, capture_output=True, text=True, timeout=60
            )
            if done.returncode:
                fired.setdefault(alert, []).append(
                    f"{'bad' if is_bad else f'good {number}'}: {done.stdout}{done.stderr}"
                )
    assert not fired, "\n".join(each for texts in fired.values() for each in texts)
