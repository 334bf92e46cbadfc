"""The dashboard, as Grafana imports it.

Way:   [dashboard] -> render.py -> grafana/dashboards/disagg.json
Owns:  what is on it: rows of panels, each with its expressions
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

SCHEMA = 39  # Grafana 11's
WIDTH, HEIGHT = 24, 8
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
J = 'job="$job"'
WINDOW = "$__rate_interval"


class Panel(NamedTuple):
    """`lines`: expression and legend; `kind`: as Grafana calls it."""

    title: str
    unit: str
    lines: tuple[tuple[str, str], ...]
    kind: str = "timeseries"
    text: str = ""


def _quantiles(metric: str) -> tuple[tuple[str, str], ...]:
    buckets = f"sum by (le) (rate({metric}_bucket{{{J}}}[{WINDOW}]))"
    return tuple((f"histogram_quantile({share}, {buckets})", f"p{share * 100:g}") for share in (0.5, 0.9, 0.99))


def _rate(metric: str, by: str, more: str = "") -> str:
    return f"sum by ({by}) (rate({metric}{{{J}{more}}}[{WINDOW}]))"


def _now(metric: str) -> str:
    return f"{metric}{{{J}}}"


def _mean(metric: str) -> str:
    return f"sum(rate({metric}_sum{{{J}}}[{WINDOW}])) / sum(rate({metric}_count{{{J}}}[{WINDOW}]))"


_OUT = ', kind="output"'
_LANE_MEAN = f"{_rate('disagg_kv_lane_bytes_total', 'lane')} / {_rate('disagg_kv_lane_transfers_total', 'lane')}"
ROWS: tuple[tuple[str, tuple[Panel, ...]], ...] = (
    (
        "At a glance",
        (
            Panel("Ready", "bool_yes_no", ((_now("disagg_ready"), "ready"),), "stat"),
            Panel("Engines ready", "short", (
                (_now("disagg_engines_ready"), "ready"),
                (_now("disagg_engines"), "of"),
            ), "stat"),
            Panel("Requests", "short", (
                (_now("disagg_requests_live"), "live"),
                (_now("disagg_requests_queued"), "wait"),
            ), "stat"),
            Panel("Tokens made", "short", ((_rate("disagg_rank_tokens_total", "kind", _OUT), "tokens/s"),), "stat"),
        ),
    ),
    (
        "Requests",
        (
            Panel("Ended", "reqps", ((_rate("disagg_requests_total", "phase"), "{{phase}}"),)),
            Panel("First token", "s", _quantiles("disagg_ttft_seconds")),
            Panel("Token to token", "s", _quantiles("disagg_tpot_seconds"), text="The mean of each answer."),
            Panel("Whole answer", "s", _quantiles("disagg_request_seconds")),
            Panel("Where the first token's time goes (means)", "s", (
                (_mean("disagg_queue_seconds"), "queue"),
                (_mean("disagg_prefill_seconds"), "prefill"),
                (_mean("disagg_kv_transfer_seconds"), "transfer"),
            )),
            Panel("Live and waiting", "short", (
                (_now("disagg_requests_live"), "live"),
                (_now("disagg_requests_queued"), "wait for a pair"),
            )),
            Panel("Ended, by frontend", "reqps", ((_rate("disagg_requests_total", "frontend"), "{{frontend}}"),)),
            Panel("Errors told to clients", "reqps", ((_rate("disagg_errors_total", "code"), "{{code}}"),)),
            Panel("Retries and migrations", "ops", (
                (_rate("disagg_lost_tries_total", "when"), "{{when}}"),
                (_rate("disagg_failed_total", "error"), "failed: {{error}}"),
            )),
        ),
    ),
    (
        "Engines and ranks",
        (
            Panel("Tokens made by rank", "short", (
                (_rate("disagg_rank_tokens_total", "engine, dp_rank", _OUT), "{{engine}}/{{dp_rank}}"),
            )),
            Panel("Prompt tokens by rank", "short", (
                (_rate("disagg_rank_tokens_total", "engine, dp_rank", ', kind="prompt"'), "{{engine}}/{{dp_rank}}"),
            )),
            Panel("KV taken", "percentunit", (
                (f"disagg_kv_tokens_taken{{{J}}} / (disagg_kv_tokens{{{J}}} > 0)", "{{engine}}/{{dp_rank}}"),
            )),
            Panel("Requests on a rank", "short", ((_now("disagg_rank_requests"), "{{engine}}/{{dp_rank}}"),)),
            Panel("Prompt tokens that wait", "short", ((_now("disagg_rank_unread_tokens"), "{{engine}}/{{dp_rank}}"),)),
            Panel("Restarts", "short", ((_now("disagg_engine_restarts"), "{{engine}}"),)),
            Panel("States", "short", ((f"count by (role, state) (disagg_engine_state{{{J}}})", "{{role}} {{state}}"),)),
            Panel("Where it is", "short", ((_now("disagg_engine_info"), ""),), "table"),
        ),
    ),
    (
        "KV",
        (
            Panel("KV sent, by lane", "Bps", ((_rate("disagg_kv_lane_bytes_total", "lane"), "{{lane}}"),)),
            Panel("Transfer time", "s", _quantiles("disagg_kv_transfer_seconds")),
            Panel("KV of a request, by lane", "bytes", ((_LANE_MEAN, "{{lane}}"),)),
            Panel("Prompt tokens that were cached", "percentunit", (
                (
                    f"sum by (by) (rate(disagg_prompt_tokens_cached_total{{{J}}}[{WINDOW}])) / on () group_left () "
                    f"sum(rate(disagg_tokens_total{{{J}, kind=\"prompt\"}}[{WINDOW}]))",
                    "{{by}}",
                ),
            )),
        ),
    ),
)  # fmt: skip


def dashboard() -> dict[str, Any]:
    return {
        "uid": "disagg",
        "title": "disagg",
        "tags": ["disagg", "llm"],
        "schemaVersion": SCHEMA,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "timezone": "browser",
        "templating": {"list": [
            {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus", "hide": 0},
            {
                "name": "job", "label": "Job", "type": "query", "datasource": SOURCE, "refresh": 2, "sort": 1,
                "definition": "label_values(disagg_engines, job)",
                "query": {"query": "label_values(disagg_engines, job)", "refId": "job"},
            },
        ]},
        "panels": list(_panels()),
    }  # fmt: skip


def _panels() -> Iterator[dict[str, Any]]:
    y = number = 0
    for title, panels in ROWS:
        number += 1
        yield {"id": number, "type": "row", "title": title, "collapsed": False, "panels": [],
               "gridPos": {"x": 0, "y": y, "w": WIDTH, "h": 1}}  # fmt: skip
        y += 1
        wide = WIDTH // (4 if panels[0].kind == "stat" else 2)
        high = HEIGHT // 2 if panels[0].kind == "stat" else HEIGHT
        for index, panel in enumerate(panels):
            number += 1
            place = index * wide
            at = {"x": place % WIDTH, "y": y + place // WIDTH * high, "w": wide, "h": high}
            yield _panel(panel, number, at)
        y += -(-len(panels) * wide // WIDTH) * high


def _panel(panel: Panel, number: int, at: dict[str, int]) -> dict[str, Any]:
    targets: list[dict[str, Any]] = [
        {"refId": chr(ord("A") + index), "datasource": SOURCE, "expr": expression, "legendFormat": legend or "__auto"}
        for index, (expression, legend) in enumerate(panel.lines)
    ]
    if panel.kind == "table":
        targets = [{**target, "format": "table", "instant": True} for target in targets]
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.text,
        "datasource": SOURCE,
        "gridPos": at,
        "targets": targets,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {},
    }
