"""`disagg top`: the page in a terminal: engines and their ranks, requests, what happened; live.

Way:   feed.py, in a thread -> [top] -> the terminal, once a second; keys -> what is shown
In:    a terminal. Keys: q ends it, the arrows move through the engines
Owns:  the terminal's mode while it runs: it is as it was afterwards, however it ends
Fails: StartError where there is no terminal, and as feed.py
"""

from __future__ import annotations

import os
import select
import sys
import termios
import threading
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from disagg import stopping
from disagg.cli.events import sentence
from disagg.cli.feed import Seen, follow
from disagg.cli.observe import Url
from disagg.errors import StartError

AGAIN_S = 2.0  # until a frontend that is lost is asked again
KEY_S = 0.25
UP, DOWN, QUIT = ("\x1b[A", "\x1b[D"), ("\x1b[B", "\x1b[C"), ("q", "Q", "\x03")
STATES = {"ready": "green", "starting": "yellow", "draining": "cyan", "dead": "red", "quarantined": "magenta"}
FIGURES = (
    ("made", "tokens made / s"),
    ("read", "read / s"),
    ("running", "run"),
    ("queued", "wait"),
    ("ended", "answers / s"),
    ("failed", "failures / s"),
    ("ttft_ms_p50", "first token p50, ms"),
    ("ttft_ms_p99", "p99, ms"),
)
BAR = 10  # characters
LINES_BESIDE = 10  # heads, figures, keys, and what is left empty
REQUESTS_SHOWN, EVENTS_SHOWN = 6, 6


def top(url: Url = None) -> None:
    """A live table: engines, ranks, requests, events. q ends it, arrows move through the engines."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise StartError("disagg top", "needs a terminal", "`disagg status` and `disagg events` need none")
    follower = Follower(url)
    console = Console()
    first, before = 0, None
    with stopping.unwinding(), _keys() as pressed, Live(console=console, screen=True, auto_refresh=False) as live:
        follower.start()
        while True:
            with follower.lock:
                now = follower.seen.at_s, follower.why_not, first, console.size
                shown = picture(follower.seen, follower.why_not, first, console.height) if now != before else None
            if shown is not None:
                live.update(shown, refresh=True)
                before = now
            key = pressed()
            if key in QUIT:
                return
            most = max(0, len(follower.seen.engines) - 1)
            first = min(most, first + 1) if key in DOWN else max(0, first - 1) if key in UP else min(first, most)
            follower.check()


class Follower:
    """Reads the feed in a thread. `why_not`: why nothing new comes; "" while it does."""

    def __init__(self, url: str | None) -> None:
        self._url, self.seen, self.why_not = url, Seen(), "asks"
        self.lock = threading.Lock()  # of `seen`
        self._ended_by: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="feed", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def check(self) -> None:
        """Raises what ended the feed: before anything came of it, a frontend that refuses, or that is not there; at
        any time what nobody foresaw."""
        if self._ended_by is not None:
            raise self._ended_by

    def _run(self) -> None:
        try:
            self._follow()
        except Exception as error:  # noqa: BLE001 - whatever it is, `check` raises it where somebody sees it
            self._ended_by = error

    def _follow(self) -> None:
        while True:
            try:
                with follow(self._url) as events:
                    for event in events:
                        with self.lock:
                            self.seen.take(event)
                        self.why_not = ""
                self.why_not = "the frontend stopped; asked again"
            except StartError as error:
                if not self.seen.at_s:
                    raise
                self.why_not = f"{error.what}; asked again"
            time.sleep(AGAIN_S)


def picture(seen: Seen, why_not: str, first: int, height: int) -> Group:
    """`first`: the engine that the table begins with; `height`: lines of the terminal."""
    engines = sorted(seen.engines.values(), key=lambda each: (each["role"], _natural(each["id"])))
    ready = sum(engine["state"] == "ready" for engine in engines)
    head = Text(f"{seen.model or 'disagg'}   {ready} of {len(engines)} engines ready", style="bold")
    head.append(f"   {time.strftime('%H:%M:%S', time.localtime(seen.at_s))}" * bool(seen.at_s), style="dim")
    head.append(f"   {why_not}" * bool(why_not), style="red")
    silent = ", ".join(map(str, seen.silent))
    head.append(f"   no answer of frontend {silent}, whose requests are missing here" * bool(silent), style="red")
    figures = Text("   ").join(Text(f"{title} {_number(seen.now(name))}") for name, title in FIGURES)
    head.no_wrap = figures.no_wrap = True
    story = sorted(seen.story.values(), key=lambda chapter: chapter["at_s"])[-EVENTS_SHOWN:]
    said = [Text(sentence(chapter), no_wrap=True, overflow="ellipsis") for chapter in reversed(story)]
    live = seen.live[:REQUESTS_SHOWN]
    room = max(1, height - LINES_BESIDE - len(said) - len(live))
    below = Text("q ends, arrows move" + f"; engine {first + 1} of {len(engines)} first" * bool(first), style="dim")
    parts: list[RenderableType] = [
        head,
        figures,
        Text(),
        _engines(seen, engines[first:], room),
        Text(),
        _requests(live),
        Text(),
        *said,
        below,
    ]
    return Group(*parts)


def _engines(seen: Seen, engines: list[dict[str, Any]], room: int) -> Table:
    table = Table("engine", "role", "state", "rank", "requests", "KV", "made/s", "read/s", "detail", box=None)
    rows = 0
    for engine in engines:
        ranks = seen.loads.get(engine["id"]) or [[]]
        for rank, load in enumerate(ranks):
            if rows == room:
                table.add_row("…")
                return table
            rows += 1
            requests, kv, made, read = load or (None, None, None, None)
            state = Text(engine["state"], style=STATES.get(engine["state"], ""))
            restarts = f"restarted {engine['restarts']}x" * bool(engine["restarts"])
            detail = "; ".join(filter(None, (restarts, engine["detail"].partition("\n")[0])))
            names = (Text(engine["id"]), engine["role"], state) if not rank else ("", "", Text(""))
            of_rank = (_number(requests), _bar(kv, engine["kv_tokens"]), _number(made), _number(read))
            table.add_row(*names, str(rank) if load else "", *of_rank, Text(detail, no_wrap=True) if not rank else "")
    return table


def _requests(live: list[dict[str, Any]]) -> Table:
    table = Table("runs longest", "phase", "age", "tokens", "on", box=None)
    for each in live:
        on = " + ".join(filter(None, (each.get("prefill"), each.get("decode"))))
        tokens = f"{each['prompt_tokens']} + {each['tokens']}"
        table.add_row(Text(each["id"]), each["phase"], f"{each['age_s']:.1f} s", tokens, Text(on))
    return table


def _bar(taken: float | None, there: int) -> str:
    if taken is None or not there:
        return ""
    share = min(1.0, max(0.0, taken / there))
    return f"{'█' * round(share * BAR):░<{BAR}} {share:4.0%}"


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.1f}"


def _natural(name: str) -> tuple[str, int]:
    """decode-10 comes after decode-9."""
    head, _, number = name.rpartition("-")
    return (head, int(number)) if number.isdecimal() else (name, -1)


@contextmanager
def _keys() -> Iterator[Any]:
    """Gives a function that waits KEY_S at most for a key: its letters, or "". No key waits for Enter meanwhile."""
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    try:
        tty.setcbreak(fd)
        yield lambda: os.read(fd, 16).decode(errors="replace") if select.select([fd], [], [], KEY_S)[0] else ""
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
