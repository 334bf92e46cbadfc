"""The files of `disagg deploy monitoring`.

Way:   MonitoringOptions -> [render_monitoring] -> path -> text
Fails: problems of the options, before anything is written
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files

import yaml

from disagg.deploy.monitoring.dashboard import dashboard
from disagg.errors import Problem
from disagg.telemetry.bounds import SECONDS

JOB = "disagg"
_TARGET = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):\d{1,5}")


@dataclass(frozen=True, slots=True)
class MonitoringOptions:
    """`targets`: HOST:PORT of the port that frontends share, one a deployment. On Prometheus' machine, `key_file` has a
    key, and `ca` who signed the frontends' certificate."""

    targets: tuple[str, ...]
    key_file: str = ""
    is_https: bool = False
    ca: str = ""
    ttft_p99_s: float = 5.0
    has_engines: bool = False  # of their own metrics: telemetry.engine_metrics
    prometheus: str = "http://localhost:9090"  # as Grafana reaches it


def problems_of_monitoring(options: MonitoringOptions) -> Iterator[Problem]:
    for target in options.targets:
        if not _TARGET.fullmatch(target) or not 0 < int(target.rpartition(":")[2]) < 65536:
            yield Problem("--target", f"{target!r} is no address of a frontend", "say HOST:PORT")
    if options.ca and not options.is_https:
        yield Problem("--ca", "is of use with https alone", "say --https, or leave it out")
    if not options.ttft_p99_s > 0:
        yield Problem("--ttft-p99-s", f"{options.ttft_p99_s} is no time", "say seconds, as 5")
    if options.ttft_p99_s >= SECONDS[-1]:
        what = f"{options.ttft_p99_s:g} s are not told from more: the last bucket of disagg_ttft_seconds ends there"
        yield Problem("--ttft-p99-s", what, f"say less than {SECONDS[-1]:g}")
    if not re.fullmatch(r"https?://[^\s\"'\\]+", options.prometheus):
        yield Problem("--prometheus", f"{options.prometheus!r} is no URL", "say it as Grafana reaches it")


def render_monitoring(options: MonitoringOptions) -> dict[str, str]:
    rules = files(__package__).joinpath("rules.yml").read_text(encoding="utf-8")
    provider = {"name": JOB, "type": "file", "options": {"path": "/var/lib/grafana/dashboards"}}
    source = {"name": "Prometheus", "type": "prometheus", "access": "proxy", "url": options.prometheus}
    return {
        "prometheus.yml": _yaml(_prometheus(options)),
        "disagg-rules.yml": rules.replace("<<TTFT_P99_S>>", f"{options.ttft_p99_s:g}"),
        "grafana/provisioning/datasources/prometheus.yaml": _yaml({"apiVersion": 1, "datasources": [source]}),
        "grafana/provisioning/dashboards/disagg.yaml": _yaml({"apiVersion": 1, "providers": [provider]}),
        "grafana/dashboards/disagg.json": json.dumps(dashboard(), indent=1) + "\n",
    }


def _prometheus(options: MonitoringOptions) -> dict[str, object]:
    engines = {**_scrape(options, f"{JOB}-engines"), "metrics_path": "/metrics/engines"}
    return {
        "global": {"scrape_interval": "10s", "evaluation_interval": "10s"},
        "rule_files": ["disagg-rules.yml"],
        "scrape_configs": [_scrape(options, JOB), *([engines] if options.has_engines else [])],
    }


def _scrape(options: MonitoringOptions, job: str) -> dict[str, object]:
    scrape: dict[str, object] = {"job_name": job, "scheme": "https" if options.is_https else "http"}
    if options.key_file:
        scrape["authorization"] = {"type": "Bearer", "credentials_file": options.key_file}
    if options.ca:
        scrape["tls_config"] = {"ca_file": options.ca}
    return scrape | {"static_configs": [{"targets": list(options.targets)}]}


def _yaml(tree: object) -> str:
    return yaml.safe_dump(tree, sort_keys=False)
