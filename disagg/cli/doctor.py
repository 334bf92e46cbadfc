"""`disagg doctor`: what is wrong with a running deployment now, and what would help.

Way:   command line -> [doctor] =HTTP=> a frontend; the rules look at its status, its engines' loads and its metrics
Out:   a line a complaint; exit status 1 where there is one
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import typer

from disagg.cli.observe import Url, ask
from disagg.lives import life_of
from disagg.role_table import ROLES
from disagg.roles import Role

KV_FULL = 0.95
FAILED = 0.01  # of all requests
LAG_S = 1.0
# Reasons of the HTTP layer's refusals that tell of too little room, or of an attack.
FULL = {
    "connections_full": "frontend.connections_max were open, and none was idle",
    "connections_evicted": "frontend.connections_max were open, and the longest idle one had to go",
    "open_files": "no more files may be open (ulimit -n)",
    "unsent_full": "clients together did not take 256 MiB of answers",
}


@dataclass(frozen=True, slots=True)
class Complaint:
    what: str
    would_do: str


@dataclass(frozen=True, slots=True)
class Seen:
    """What a frontend answers. `metrics`: by name and labels, sorted by their names."""

    status: dict[str, Any]
    loads: dict[str, list[dict[str, Any]]]
    metrics: dict[tuple[str, tuple[tuple[str, str], ...]], float]
    now_s: float  # wall clock

    @property
    def engines(self) -> list[dict[str, Any]]:
        engines: list[dict[str, Any]] = self.status["engines"]
        return engines

    def of(self, metric: str) -> dict[tuple[tuple[str, str], ...], float]:
        return {labels: value for (name, labels), value in self.metrics.items() if name == metric}


def doctor(url: Url = None) -> None:
    """Say what is wrong with a running deployment, and what would help. Exit status 1 when something is."""
    complaints = list(complaints_of(look(url)))
    for complaint in complaints:
        sys.stdout.write(f"{complaint.what}\n    {complaint.would_do}\n")
    if complaints:
        raise typer.Exit(1)
    sys.stdout.write("nothing is wrong that can be seen from here\n")


def look(url: str | None) -> Seen:
    """Raises StartError when no frontend answers."""
    return Seen(ask(url, "/disagg/status"), ask(url, "/disagg/loads"), parsed(ask(url, "/metrics")), time.time())


def parsed(metrics: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    from prometheus_client.parser import text_string_to_metric_families

    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(metrics)
        for sample in family.samples
    }


def complaints_of(seen: Seen) -> Iterator[Complaint]:
    for rule in RULES:
        yield from rule(seen)


def _nobody_serves(seen: Seen) -> Iterator[Complaint]:
    if not seen.status["ready"]:
        there = {engine["role"] for engine in seen.engines if engine["state"] == "ready"}
        lacking = sorted({engine["role"] for engine in seen.engines} - there)
        whose = f": no {' and no '.join(lacking)} engine is ready" if lacking else ""
        yield Complaint(
            f"{seen.status['model']} is not served{whose}", "see the engines below; wait for those that start"
        )


def _engines_that_do_not_serve(seen: Seen) -> Iterator[Complaint]:
    for engine in seen.engines:
        name, state = engine["id"], engine["state"]
        if state == "ready":
            continue
        why = (engine["detail"].splitlines() or [""])[0]
        what = f"{name} is {state} for {seen.now_s - engine['since']:.0f} s" + (f": {why}" if why else "")
        if state == "dead" and why.startswith("drained"):
            yield Complaint(what, f"disagg drain {name} --restart")
        elif state == "draining":
            yield Complaint(what, "it ends when its requests do, or after deadlines.drain_s")
        else:
            yield Complaint(what, f"disagg logs {name}")


def _engines_that_die(seen: Seen) -> Iterator[Complaint]:
    for engine in seen.engines:
        if engine["restarts"]:
            times = "once" if engine["restarts"] == 1 else f"{engine['restarts']} times"
            yield Complaint(
                f"{engine['id']} was started again {times}", f"disagg logs {engine['id']}: its end is there"
            )


def _engines_that_do_not_answer(seen: Seen) -> Iterator[Complaint]:
    for engine in seen.engines:
        life = life_of(engine["id"], engine["incarnation"])
        if engine["state"] == "ready" and not seen.loads.get(life):
            yield Complaint(
                f"{life} does not say its load", "its node is overloaded or cut off; it is replaced if it stays so"
            )


def _engines_without_a_partner(seen: Seen) -> Iterator[Complaint]:
    for engine in seen.engines:
        is_half = ROLES[Role(engine["role"])].partner
        if engine["state"] == "ready" and is_half and not engine["peers"]:
            yield Complaint(
                f"{engine['id']} has no partner to move KV with", "disagg logs: why the proving of its transfers failed"
            )


def _slow_lanes(seen: Seen) -> Iterator[Complaint]:
    for engine in seen.engines:
        if engine["devices"] and "tcp" in engine["lane"].split("+"):
            yield Complaint(
                f"KV goes to or from {engine['id']}, on a GPU, over TCP",
                "ucx_info -d, ulimit -l on its node; in a pod --rdma and --host-network (docs/deploy.md)",
            )


def _full_ranks(seen: Seen) -> Iterator[Complaint]:
    for life, ranks in seen.loads.items():
        for rank in ranks:
            if rank["kv_tokens_used"] > KV_FULL * rank["kv_tokens_total"] > 0:
                share = rank["kv_tokens_used"] / rank["kv_tokens_total"]
                yield Complaint(
                    f"{life}/{rank['dp_rank']} has {share:.0%} of its KV in use", "more engines of its role"
                )


def _requests_that_wait(seen: Seen) -> Iterator[Complaint]:
    every = seen.status.get("frontends") or [seen.status["frontend"]]
    if waiting := sum(each.get("queued", 0) for each in every):
        yield Complaint(
            f"{waiting} requests wait in the frontend for room",
            "more engines, where that lasts; docs/routing.md, Waiting",
        )


def _requests_that_fail(seen: Seen) -> Iterator[Complaint]:
    ended: Counter[str] = Counter()  # over models, and frontends
    for labels, count in seen.of("disagg_requests_total").items():
        ended[dict(labels)["phase"]] += int(count)
    failed, every = ended.get("failed", 0), sum(ended.values())
    if failed > FAILED * every:
        yield Complaint(
            f"{failed:.0f} of {every:.0f} requests failed since this frontend began",
            "its log names each with the reason; disagg status --request ID",
        )
    lost = sum(seen.of("disagg_lost_tries_total").values())
    if lost > FAILED * every:
        yield Complaint(
            f"{lost:.0f} tries of {every:.0f} requests lost a leg or were late",
            "docs/failures.md; disagg status --request ID",
        )


def _refusals(seen: Seen) -> Iterator[Complaint]:
    """For want of room; what was wrong is its sender's."""
    refused: Counter[str] = Counter()  # over frontends
    for labels, count in seen.of("disagg_refused_total").items():
        refused[dict(labels)["reason"]] += int(count)
    for reason, count in refused.items():
        if count and reason in FULL:
            yield Complaint(f"{count} connections were refused or closed: {FULL[reason]}", "docs/limits.md, Sum")


def _caches(seen: Seen) -> Iterator[Complaint]:
    for engine in seen.engines:
        if engine["switched_off"]:
            parts = ", ".join(engine["switched_off"])
            yield Complaint(
                f"{engine['id']} runs without {parts}: its SGLang does not fit",
                "docs/sglang-versions.md: a release that does",
            )
    for labels, lag_s in seen.of("disagg_cache_events_lag_seconds").items():
        if lag_s > LAG_S:
            rank = dict(labels)
            yield Complaint(
                f"what {rank['engine']}/{rank['dp_rank']} caches is told {lag_s:.1f} s late",
                "its node has no core to spare",
            )


RULES: tuple[Callable[[Seen], Iterator[Complaint]], ...] = (
    _nobody_serves,
    _engines_that_do_not_serve,
    _engines_that_do_not_answer,
    _engines_without_a_partner,
    _engines_that_die,
    _requests_that_wait,
    _requests_that_fail,
    _full_ranks,
    _slow_lanes,
    _refusals,
    _caches,
)
