"""`disagg logs`: what engines said, and with -f what they go on to say, until Ctrl-C.

Way:   command line -> [logs] =HTTP=> a frontend -> the controller -> the engine's log file
Fails: StartError when no frontend answers, or it refuses. While it follows, an answer that does not come is told, and
       asked for again
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterable, Iterator
from itertools import cycle
from typing import Annotated
from urllib.parse import quote

import typer

from disagg.cli.observe import Url, ask
from disagg.errors import StartError
from disagg.logfile import ASKED_LINES_MAX

FOLLOW_S = 1.0
FOLLOWED_LINES = 1000  # what an engine may say in that time, and nothing is left out
NODE_HEAD = "==> node "
COLOURS = cycle(f"\033[{code}m" for code in (36, 33, 32, 35, 34, 96, 93, 92, 95, 94))


def logs(
    engine: Annotated[str | None, typer.Argument(help="An engine's id; without one, all of them.")] = None,
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, max=ASKED_LINES_MAX)] = 200,
    rank: Annotated[int | None, typer.Option(min=0, help="Only what this dp rank says.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C.")] = False,
    url: Url = None,
) -> None:
    """The last lines of an engine's log; of one over several nodes, those of each node."""
    names = [engine] if engine else [e["id"] for e in ask(url, "/disagg/status")["engines"]]
    width = max(map(len, names)) if names and not engine else 0
    followed = [_Followed(name, rank, url, width) for name in names]
    for each in followed:
        each.show(lines, asked=max(lines, FOLLOWED_LINES) if follow else lines)
    while follow:
        sys.stdout.flush()
        time.sleep(FOLLOW_S)
        for each in followed:
            each.show_more()


class _Followed:
    """One engine. `width`: of the names that lines begin with; 0: they have none."""

    def __init__(self, name: str, rank: int | None, url: str | None, width: int) -> None:
        self._name, self._rank, self._url = name, rank, url
        self._asked_lines = FOLLOWED_LINES
        self._seen: dict[str, list[str]] = {}  # the last lines of each node
        self._why_not = ""
        colour, end = (next(COLOURS), "\033[0m") if sys.stdout.isatty() else ("", "")
        self._prefix = f"{colour}{name:{width}} |{end} " if width else ""

    def show(self, lines: int, asked: int) -> None:
        """Of each node the last `lines` of those that are asked for, now and whenever there may be more."""
        self._asked_lines = asked
        self._seen = self._ask()
        for node, said in self._seen.items():
            self._show(node, said, len(said) - lines)

    def show_more(self) -> None:
        try:
            now = self._ask()
        except StartError as error:
            if self._why_not != (why_not := str(error)):
                self._why_not = why_not
                self._write([f"[disagg logs] {error}"])
            return
        self._why_not = ""
        for node, said in now.items():
            if shown := beyond(self._seen.get(node, []), said):
                self._show(node, said, len(said) - len(shown))
        self._seen = now

    def _ask(self) -> dict[str, list[str]]:
        text: str = ask(self._url, f"/disagg/logs/{quote(self._name, safe='')}", lines=self._asked_lines)
        return by_node(text.splitlines())

    def _show(self, node: str, said: list[str], begin: int) -> None:
        """From `begin` on. Those before tell whose a line without a head is."""
        shown = enumerate(said) if self._rank is None else of_rank(said, self._rank)
        if lines := [line for index, line in shown if index >= begin]:
            self._write([node] * bool(node) + lines)

    def _write(self, lines: Iterable[str]) -> None:
        sys.stdout.writelines(f"{self._prefix}{line}\n" for line in lines)


def of_rank(lines: Iterable[str], rank: int) -> Iterator[tuple[int, str]]:
    """With their places. SGLang begins its lines with `[time DP0 TP0]`; one without such a head belongs to the line
    before."""
    is_meant = False
    for index, line in enumerate(lines):
        if (head := re.match(r"\[[^\]]*\]", line)) is not None:
            is_meant = re.search(rf"\bDP{rank}\b", head[0]) is not None
        if is_meant:
            yield index, line


def by_node(lines: Iterable[str]) -> dict[str, list[str]]:
    """The lines below each node's head; those of an engine on one node below "" ."""
    nodes: dict[str, list[str]] = {}
    head = ""
    for line in lines:
        if line.startswith(NODE_HEAD):
            head = line
        else:
            nodes.setdefault(head, []).append(line)
    return nodes


def beyond(before: list[str], now: list[str]) -> list[str]:
    """What `now` has after the longest end of `before` with which it begins; all of it where it begins with none. Both
    are the last lines of one log, as many at most."""
    overlap = next((end for end in range(min(len(before), len(now)), 0, -1) if before[-end:] == now[:end]), 0)
    return now[overlap:]
