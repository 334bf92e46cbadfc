"""The page's feed, for programs: what a deployment does, as it happens.

Way:   a frontend's /disagg/events =HTTP=> [follow] -> top.py, events.py
Out:   the feed's events, as plain data; Seen keeps what they add up to
Fails: StartError when no frontend answers, when it refuses, or when it stops telling
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from disagg.cli.observe import base_url, headers, refusal, trust, unreachable
from disagg.visible import all_visible

PATH = "/disagg/events"
SILENT_S = 15.0  # it tells something each second
HISTORY = 15 * 60

Event = dict[str, Any]


@contextmanager
def follow(url: str | None) -> Iterator[Iterator[Event]]:
    import httpx

    base = base_url(url)
    try:
        with (
            httpx.Client(timeout=SILENT_S, trust_env=False, verify=trust()) as client,
            client.stream("GET", base + PATH, headers=headers()) as answer,
        ):
            if answer.status_code != 200:
                answer.read()
                raise refusal(base + PATH, answer)
            yield _events(answer.iter_lines())
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise unreachable(base, error) from None


def _events(lines: Iterator[str]) -> Iterator[Event]:
    for line in lines:
        if line.startswith("data: "):
            yield all_visible(json.loads(line.removeprefix("data: ")))


class Seen:
    """What the events so far add up to."""

    def __init__(self) -> None:
        self.model, self.at_s = "", 0.0
        self.engines: dict[str, dict[str, Any]] = {}
        self.loads: dict[str, list[list[float]]] = {}
        self.phases: dict[str, int] = {}
        self.columns: list[str] = []
        self.samples: deque[list[Any]] = deque(maxlen=HISTORY)
        self.story: dict[int, dict[str, Any]] = {}
        self.live: list[dict[str, Any]] = []
        self.ended: list[dict[str, Any]] = []
        self.silent: list[int] = []  # frontends, whose requests are missing here

    def take(self, event: Event) -> None:
        if event["type"] == "requests":
            self.live, self.ended = event["live"], event["ended"]
            return
        self.at_s = event["at_s"]
        if event["type"] == "snapshot":
            self.model, self.columns = event["model"], event["columns"]
            self.samples = deque(event["history"], maxlen=HISTORY)
            self.engines, self.loads, self.story = {}, {}, {}
        else:
            self.samples.append(event["sample"])
            for engine_id in event["gone"]:
                self.engines.pop(engine_id, None)
                self.loads.pop(engine_id, None)
        self.engines |= {engine["id"]: engine for engine in event["engines"]}
        self.loads |= event["loads"]
        self.phases, self.silent = event["phases"], event["silent"]
        self.story |= {chapter["number"]: chapter for chapter in event["story"]}

    def now(self, column: str) -> float | None:
        """The newest value of a chart; None where there is none."""
        if not self.samples or column not in self.columns:
            return None
        value: float | None = self.samples[-1][self.columns.index(column)]
        return value
