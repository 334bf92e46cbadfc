"""`disagg doctor`: each rule complains of what it is for, and of nothing else."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from disagg.cli.app import app
from disagg.cli.doctor import Seen, complaints_of, parsed

NOW_S = 1000.0


def engine(name: str, **more: Any) -> dict[str, Any]:
    role = name.partition("-")[0]
    partner = {"prefill": "decode-0#1", "decode": "prefill-0#1"}.get(role)
    usual = dict(state="ready", incarnation=1, since=NOW_S - 60, detail="", restarts=0, lane="posix", devices="")
    return {"id": name, "role": role, **usual, "switched_off": [], "peers": [partner] if partner else [], **more}


def loads_of(*engines: dict[str, Any], used: int = 10) -> dict[str, list[dict[str, Any]]]:
    rank = {"dp_rank": 0, "kv_tokens_used": used, "kv_tokens_total": 100}
    return {f"{each['id']}#{each['incarnation']}": [rank] for each in engines if each["state"] == "ready"}


def said(*engines: dict[str, Any], ready: bool = True, queued: int = 0, used: int = 10, metrics: str = "") -> list[str]:
    every = list(engines) or [engine("prefill-0"), engine("decode-0")]
    status = {"model": "m", "ready": ready, "engines": every, "frontend": {"queued": queued}}
    seen = Seen(status, loads_of(*every, used=used), parsed(metrics), NOW_S)
    return [complaint.what for complaint in complaints_of(seen)]


def test_of_a_sound_deployment_there_is_nothing_to_say() -> None:
    assert said() == []
    assert said(engine("aggregated-0"), engine("embedding-0")) == []


def test_engines_that_do_not_serve() -> None:
    dead = engine("decode-0", state="dead", detail="out of memory\nmore", peers=[])
    assert said(engine("prefill-0"), dead, ready=False) == [
        "m is not served: no decode engine is ready",
        "decode-0 is dead for 60 s: out of memory",
    ]


@pytest.mark.parametrize(
    ("state", "detail", "would_do"),
    [
        ("dead", "drained", "disagg drain decode-1 --restart"),
        ("draining", "", "it ends when its requests do, or after deadlines.drain_s"),
        ("starting", "waits for its place", "disagg logs decode-1"),
    ],
)
def test_what_would_help_depends_on_why(state: str, detail: str, would_do: str) -> None:
    every = [engine("prefill-0"), engine("decode-0"), engine("decode-1", state=state, detail=detail)]
    status = {"model": "m", "ready": True, "engines": every, "frontend": {"queued": 0}}
    [complaint] = complaints_of(Seen(status, loads_of(*every), {}, NOW_S))
    assert complaint.would_do == would_do


def test_engines_that_serve_badly() -> None:
    alone = engine("prefill-0", peers=[], restarts=3)
    assert said(alone, engine("decode-0", switched_off=["kv_events"], restarts=1)) == [
        "prefill-0 has no partner to move KV with",
        "prefill-0 was started again 3 times",
        "decode-0 was started again once",
        "decode-0 runs without kv_events: its SGLang does not fit",
    ]


def test_lanes_of_gpus_alone() -> None:
    assert said(engine("prefill-0", lane="tcp"), engine("decode-0", lane="tcp+sysv")) == []
    assert said(engine("prefill-0", lane="tcp", devices="0"), engine("decode-0", lane="cuda_ipc", devices="1")) == [
        "KV goes to or from prefill-0, on a GPU, over TCP"
    ]


def test_ranks_and_queues_that_are_full() -> None:
    assert said(used=96, queued=7) == [
        "7 requests wait in the frontend for room",
        "prefill-0#1/0 has 96% of its KV in use",
        "decode-0#1/0 has 96% of its KV in use",
    ]


def test_an_engine_that_does_not_say_its_load() -> None:
    every = [engine("prefill-0"), engine("decode-0")]
    status = {"model": "m", "ready": True, "engines": every, "frontend": {"queued": 0}}
    [complaint] = complaints_of(Seen(status, {**loads_of(*every), "decode-0#1": []}, {}, NOW_S))
    assert complaint.what == "decode-0#1 does not say its load"


def test_requests_that_fail_and_events_that_come_late() -> None:
    few = 'disagg_requests_total{phase="finished"} 1000\ndisagg_requests_total{phase="failed"} 3\n'
    assert said(metrics=few) == []
    many = (
        'disagg_requests_total{phase="finished"} 90\ndisagg_requests_total{phase="failed"} 10\n'
        'disagg_lost_tries_total{when="before_first_token"} 12\n'
        'disagg_cache_events_lag_seconds{dp_rank="1",engine="prefill-0"} 2.5\n'
    )
    assert said(metrics=many) == [
        "10 of 100 requests failed since this frontend began",
        "12 tries of 100 requests lost a leg or were late",
        "what prefill-0/1 caches is told 2.5 s late",
    ]


def test_room_that_was_lacking_and_not_what_senders_got_wrong() -> None:
    metrics = 'disagg_refused_total{reason="%s"} 3\n'
    assert said(metrics=metrics % "malformed_request") == []
    assert said(metrics=metrics % "open_files") == [
        "3 connections were refused or closed: no more files may be open (ulimit -n)"
    ]
    of_each = (f'disagg_refused_total{{frontend="{n}",reason="open_files"}} {n}\n' for n in range(4))
    assert said(metrics="".join(of_each)) == [
        "6 connections were refused or closed: no more files may be open (ulimit -n)"
    ]


def test_requests_of_all_frontends_count() -> None:
    of_each = ((0, "failed", 10), (1, "failed", 0), (0, "finished", 0), (1, "finished", 90))
    told = (f'disagg_requests_total{{frontend="{n}",phase="{phase}"}} {count}\n' for n, phase, count in of_each)
    assert said(metrics="".join(told)) == ["10 of 100 requests failed since this frontend began"]


@pytest.mark.parametrize(("restarts", "status"), [(0, 0), (1, 1)])
def test_its_exit_status(restarts: int, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    every = [engine("prefill-0", restarts=restarts), engine("decode-0")]
    answers = {
        "/disagg/status": httpx.Response(
            200, json={"model": "m", "ready": True, "engines": every, "frontend": {"queued": 0}}
        ),
        "/disagg/loads": httpx.Response(200, json=loads_of(*every)),
        "/metrics": httpx.Response(200, text=""),
    }
    monkeypatch.delenv("DISAGG_URL", raising=False)
    monkeypatch.setattr(httpx, "request", lambda _method, url, **_: answers[url.removeprefix("http://127.0.0.1:8000")])
    told = CliRunner().invoke(app, ["doctor"])
    assert told.exit_code == status
    assert ("disagg logs prefill-0" in told.stdout) == bool(restarts)
