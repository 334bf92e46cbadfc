"""`make bench`: everything that needs no GPU, each part in a process of its own, and one table in the end.

Way:   [parts] -> their JSON in build/bench/ -> rows
Fails: a part that fails is a line of the table, and the exit status is 1; the others are measured all the same
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

FOLDER = Path("build/bench")
PART_S = 400.0
Row = tuple[str, str, str]  # what, figure, beside it
Rows = Callable[[Any], Iterator[Row]]


def added_ttft(ms: Any) -> Iterator[Row]:
    yield "added TTFT at concurrency 1, p50 / p99", f"{ms['p50']:.2f} / {ms['p99']:.2f} ms", "goal: 1 / 2 ms"


def hotpath(figures: Any) -> Iterator[Row]:
    for cost in figures["token"]:
        what = f"frontend's CPU a streamed token, {cost['streams']} streams"
        yield what, f"{cost['frontend_us']:.1f} µs", f"its host with a stub engine: {cost['host_us']:.1f} µs"
    for cost in figures["request"]:
        yield f"frontend's CPU a request of {cost['prompt_tokens']} tokens", f"{cost['frontend_us']:.0f} µs", ""
    for streams, tokens_s in figures["full_speed_tokens_s"].items():
        yield f"tokens/s at full speed, {streams} streams, all on this machine", f"{tokens_s / 1e3:.0f} k", ""


def forms(figures: Any) -> Iterator[Row]:
    plain = figures[0]
    for cost in figures[1:]:
        times, early, late = cost["late_us"] / plain["late_us"], cost["early_us"], cost["late_us"]
        yield f"a token, {cost['form']}", f"{late:.1f} µs", f"{times:.2f} x plain; early in an answer {early:.1f} µs"


def engine_host(figures: Any) -> Iterator[Row]:
    short_us, long_us = min(figures["short_us"]), min(figures["long_us"])
    yield (
        "CPU a token in the host of a real SGLang engine, 512 streams",
        f"{short_us:.1f} µs",
        (f"through its TokenizerManager: {long_us:.1f} µs"),
    )


def peers(figures: Any) -> Iterator[Row]:
    medians = figures["medians"]
    ours = medians["ours"]
    for key, what in (
        ("token_us_512", "CPU a token at 512 streams, µs"),
        ("request_us_500", "CPU a 500-token request, µs"),
        ("tok_s_512", "tokens/s, 512 clients"),
        ("req_s_512", "requests/s of one token, 512 clients"),
        ("ttft_1_p50", "TTFT p50 at 1 client, ms"),
        ("pss_after_mb", "memory after load, MB"),
    ):
        others = [
            f"{name} {their[key] / ours[key]:.2f}x" for name, their in medians.items() if name in PEERS and key in their
        ]
        yield f"beside peers: {what}", f"{ours[key]:,.4g}", ", ".join(others)


def fragmentation(figures: Any) -> Iterator[Row]:
    rows = {(row["policy"], row["page_tokens"]): row for row in figures["rows"]}
    for page in (16, 64):
        ours, theirs = rows["runs", page], rows["sorted", page]
        yield (
            f"worn pool's transfer over a fresh one's, page {page}, p50 / p95",
            (f"{ours['ratio_p50']:.1f} / {ours['ratio_p95']:.1f}"),
            f"SGLang's order: {theirs['ratio_p50']:.1f} / {theirs['ratio_p95']:.1f} (a model, 2.6 µs a descriptor)",
        )


def transfer(figures: Any) -> Iterator[Row]:
    for row in figures["rows"]:
        if row["bytes"] == 64 << 20:
            what = f"NIXL between two processes, 64 MiB, {row['layout']}"
            yield what, f"{row['gbyte_s']:.1f} GB/s", f"{figures['transport']}; memcpy {row['copy_gbyte_s']:.1f} GB/s"


def proving(figures: Any) -> Iterator[Row]:
    for row in figures["rows"]:
        n = row["engines_a_role"]
        beside = f"{row['pairs_s']:.0f} pairs/s, {row['cpu_ms_pair']:.2f} ms CPU each; goal: 30 s for 100 + 100"
        yield f"all pairs of {n} + {n} simulated engines are proven", f"{row['seconds']:.1f} s", beside


def routing(figures: Any) -> Iterator[Row]:
    for cost in figures:
        if cost["met"] == "all":
            what = f"a pick / a change of load, {cost['ranks']} ranks in engines of {cost['ranks_an_engine']}"
            figure = f"{cost['pick_us']:.1f} / {cost['change_us']:.1f} µs"
            yield what, figure, f"where no decode rank has room: {cost['full_us']:.1f} µs"


def decisions(figures: Any) -> Iterator[Row]:
    for cost in figures:
        ways = "ways differ by place" if cost["places"] else "ways alike"
        what = f"a decision of predicted, {cost['tokens']} tokens, {cost['ranks']} ranks, {ways}"
        parts = f"hash {cost['hash_us']:.1f}, look-up {cost['lookup_us']:.1f}"
        yield what, f"{cost['all_us']:.0f} µs", f"{parts}; at the least {cost['all_us_least']:.0f} µs in all"


def events_beside_streams(figures: Any) -> Iterator[Row]:
    for cost in figures:
        (quiet_ms, told_ms), (_, waited) = cost["gap_p99"], cost["waited_share"]
        what = f"p99 between tokens beside {cost['blocks_s'] / 1e3:.0f},000 blocks/s, {cost['a_change']} a change"
        yield (
            what,
            f"{told_ms:.1f} ms",
            f"without: {quiet_ms:.1f} ms; the frontend waited for a core {waited:.0%} of the time",
        )


PEERS = ("sglang-router", "smg", "dynamo")
PARTS: list[tuple[str, list[str], Rows]] = [
    ("proving", ["benchmarks.proving"], proving),
    ("added_ttft", ["benchmarks.added_ttft", "--json"], added_ttft),
    ("hotpath", ["benchmarks.hotpath", "--quick", "--json"], hotpath),
    ("forms", ["benchmarks.forms", "--quick", "--json"], forms),
    ("routing", ["benchmarks.routing", "--json"], routing),
    ("decisions", ["benchmarks.decisions", "--json"], decisions),
    ("events", ["benchmarks.events_beside_streams", "--windows", "4", "--json"], events_beside_streams),
    ("engine_host", ["benchmarks.engine_host", "--rounds", "1", "--json"], engine_host),
    ("peers", ["benchmarks.peers", "--quick", "--only", ",".join(("ours", *PEERS)), "--out"], peers),
    ("fragmentation", ["benchmarks.fragmentation", "--requests", "300", "--json"], fragmentation),
    (
        "transfer",
        ["disagg.cli.main", "bench", "transfer", "--sizes", "64M", "--rounds", "9", "--json"],
        transfer,
    ),
]


def main() -> int:
    FOLDER.mkdir(parents=True, exist_ok=True)
    table = Table("", "here", "beside it", title="benchmarks without a GPU")
    failed, began_s = 0, time.monotonic()
    for name, words, rows in PARTS:
        print(f"--- {name}", flush=True)
        file = FOLDER / f"{name}.json"
        file.unlink(missing_ok=True)
        try:
            subprocess.run([sys.executable, "-m", *words, str(file)], check=True, timeout=PART_S)
            for row in rows(json.loads(file.read_bytes())):
                table.add_row(*row)
        except (subprocess.SubprocessError, OSError, KeyError, ValueError) as error:
            failed += 1
            table.add_row(name, "FAILED", str(error))
        table.add_section()
    console = Console(width=180)
    console.print(table)
    console.print(f"{time.monotonic() - began_s:.0f} s; figures in {FOLDER}/")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
