"""From results.json to what docs/performance.md shows: tables in Markdown, pictures as SVG.

Way:   results.json of `run.sh collect` -> [report] -> tables on stdout; compare.svg, burst.svg in FOLDER, and those of
       two cards and of experts under their prefix (places.py)

Run:   python3 -m benchmarks.gpu.report results.json docs/pictures
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import sub, truediv
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.gpu.places import MOE, SETUPS, TWO_GPUS
from disagg.chart import bars, dots

Row = dict[str, Any]
Pick = Callable[[Row], float | None]  # None: the row is of before that was measured
ITL_COLUMNS: dict[str, Pick] = {
    "ITL p50, ms": lambda row: row["itl_ms"]["p50"],
    "ITL p99, ms": lambda row: row["itl_ms"]["p99"],
    "ITL worst, ms": lambda row: row["itl_ms"]["max"],
}
CELL_COLUMNS: dict[str, Pick] = {
    "TTFT p50, ms": lambda row: row["ttft_ms"]["p50"],
    "TTFT p99, ms": lambda row: row["ttft_ms"]["p99"],
    **ITL_COLUMNS,
    "output tok/s": lambda row: row["tok_s"],
    "share of the time in which any decodes": lambda row: row.get("decoding", {}).get("share"),
    "how many decode then": lambda row: row.get("decoding", {}).get("at_once"),
}
BURST_COLUMNS: dict[str, Pick] = {
    **ITL_COLUMNS,
    "ITL p99 before it, ms": lambda row: row["itl_alone_ms"]["p99"],
    "all long prompts read after, s": lambda row: row["burst_s"],
}


def main() -> None:
    results = json.loads(Path(sys.argv[1]).read_bytes())
    folder = Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    for prefix, title in {"": "", TWO_GPUS.prefix: "Two cards", MOE.prefix: "Experts, on two cards"}.items():
        own = {name.removeprefix(prefix): found for name, found in results.items() if name.startswith(prefix)}
        if title and own:
            print(f"{title}\n")
        for part in (_machine, _compared, _against_bare, _burst, _tokens, _kills, _startup):
            lines = list(part(own))
            if lines:
                print("\n".join(lines), end="\n\n")
        rows = good(own.get("compare", []))
        if rows:
            (folder / f"{prefix}compare.svg").write_text(_compare_picture(rows), encoding="utf-8")
        if any(row.get("gaps_ms") for row in rows):
            (folder / f"{prefix}burst.svg").write_text(_burst_picture(rows), encoding="utf-8")


def good(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if not row["errors"] and row.get("itl_ms")]


def of(rows: Sequence[Row], what: str, setup: str, pick: Pick) -> list[float]:
    """One value a round, in order."""
    values = (pick(row) for row in sorted(rows, key=_round) if (row["what"], row["setup"]) == (what, setup))
    return [value for value in values if value is not None]


def _round(row: Row) -> int:
    return int(row["round"])


def spread(values: Sequence[float]) -> str:
    """The median over the rounds, and the least and most of them."""
    if not values:
        return "-"
    digits = 0 if median(values) >= 100 else 1 if median(values) >= 10 else 2
    return " ".join((f"{median(values):.{digits}f}", f"({min(values):.{digits}f}..{max(values):.{digits}f})"))


def _cells(rows: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(row["what"] for row in rows if row["what"] != "burst"))


def _setups(rows: Iterable[Row]) -> Iterator[tuple[str, str]]:
    there = {row["setup"] for row in rows}
    return ((setup, what) for setup, what in SETUPS.items() if setup in there)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Nothing where there are no rows."""
    for number, row in enumerate(rows):
        if number == 0:
            yield f"| {' | '.join(head)} |"
            yield f"|{' --- |' * len(head)}"
        yield f"| {' | '.join(row)} |"


def _machine(results: Row) -> Iterator[str]:
    found = results.get("environment")
    if found:
        packages = ", ".join(f"{name} {version}" for name, version in found["packages"].items() if version)
        cards = [f"{name} with {memory} MiB, driver {driver}" for name, memory, _, driver, *_ in found["gpus"]]
        yield f"Machine: {'; '.join(cards) or 'no GPU'}, {found['cpus']} cores, Python {found['python']},"
        yield f"{packages}; the card copies {found.get('copy_gbyte_s', '-')} GB/s within itself."


def _compared(results: Row) -> Iterator[str]:
    rows = good(results.get("compare", []))
    told = (
        [
            cell,
            f"{setup}: {what}",
            *(spread(of(rows, cell, setup, pick)) for pick in CELL_COLUMNS.values()),
            str(len(of(rows, cell, setup, CELL_COLUMNS["output tok/s"]))),
        ]
        for cell in _cells(rows)
        for setup, what in _setups(rows)
    )
    return _table(["concurrency, in/out", "setup", *CELL_COLUMNS, "rounds"], told)


def _against_bare(results: Row) -> Iterator[str]:
    """c beside b, and d beside a, round by round."""
    rows = good(results.get("compare", []))
    ratio, added = (CELL_COLUMNS["output tok/s"], truediv), (CELL_COLUMNS["TTFT p50, ms"], sub)

    def beside(cell: str, ours: str, theirs: str, pick: Pick, how: Callable[[float, float], float]) -> str:
        pairs = zip(of(rows, cell, ours, pick), of(rows, cell, theirs, pick), strict=False)
        return spread([how(a, b) for a, b in pairs])

    head = ["concurrency, in/out", "c/b tok/s", "c - b TTFT p50, ms", "d/a tok/s", "d - a TTFT p50, ms"]
    columns = [(*setups, *what) for setups in ("cb", "da") for what in (ratio, added)]
    return _table(head, ([cell, *(beside(cell, *column) for column in columns)] for cell in _cells(rows)))


def _burst(results: Row) -> Iterator[str]:
    rows = [row for row in good(results.get("compare", [])) if row["what"] == "burst"]
    told = (
        [f"{setup}: {what}", *(spread(of(rows, "burst", setup, pick)) for pick in BURST_COLUMNS.values())]
        for setup, what in _setups(rows)
    )
    return _table(["while long prompts arrive", *BURST_COLUMNS], told)


def _tokens(results: Row) -> Iterator[str]:
    for name, passes in results.items():
        if name.startswith("tokens-"):
            rows = ([each["pass"], f"{each['equal']} of {each['asked']}", str(each["restart_s"])] for each in passes)
            yield from _table([f"{name.removeprefix('tokens-')}: pass", "equal", "restart, s"], rows)
            yield ""


def _kills(results: Row) -> Iterator[str]:
    head = ["round", "whole", "as undisturbed", "longest pause, ms", "ready again, s", "left behind", "cards, MiB"]
    told = (
        [
            str(row["round"]),
            f"{row['whole']} of {len(row['streams'])}",
            str(row["as_undisturbed"]),
            f"{row['longest_pause_ms']:.0f}",
            str(row.get("ready_again_s", "")),
            str(len(row.get("left_behind", []))),
            ", ".join(map(str, row["memory_used_mib"])),
        ]
        for row in results.get("kill", [])
    )
    return _table(head, told)


def _startup(results: Row) -> Iterator[str]:
    lives = [(life["engine"], life["seconds_since_kill"]) for life in results.get("startup", {}).get("lives", [])]
    marks = list(dict.fromkeys(mark for _, seconds in lives for mark in seconds))
    told = ([engine, *(str(seconds.get(mark, "-")) for mark in marks)] for engine, seconds in lives)
    return _table(["seconds after the kill of", *marks], told)


def _compare_picture(rows: list[Row]) -> str:
    cells = _cells(rows)
    there = dict(_setups(rows))
    panels = {
        name: {cell: {setup: of(rows, cell, setup, pick) for setup in there} for cell in cells}
        for name, pick in CELL_COLUMNS.items()
        if name in ("output tok/s", "TTFT p50, ms", "ITL p99, ms")
    }
    return bars(panels, there, x_label="clients (c), tokens of a prompt / of an answer")


def _burst_picture(rows: list[Row]) -> str:
    series = {row["setup"]: row["gaps_ms"] for row in rows if row.get("gaps_ms")}
    panels = {f"{setup}: {SETUPS[setup]}": series[setup] for setup in SETUPS if setup in series}
    return dots(panels, x_label="ms since the long prompts arrived", y_label="gap between two tokens, ms")


if __name__ == "__main__":
    main()
