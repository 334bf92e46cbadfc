"""`disagg events`: what happened, as a story: engines that died and came back, requests that had to go elsewhere.

Way:   feed.py -> [events] -> a line a chapter
In:    the last 200 chapters, which a frontend keeps whether or not somebody looks; with -f those that come
Fails: as feed.py; NoFrontend when the frontend stops
"""

from __future__ import annotations

import json
import sys
import time
from typing import Annotated, Any

import typer

from disagg.cli.feed import follow
from disagg.cli.observe import NoFrontend, Url, base_url

ENGINES_DO = {
    "new": "is new",
    "starting": "starts",
    "ready": "is ready",
    "quarantined": "set aside",
    "draining": "drains",
    "dead": "died",
    "removed": "removed",
    "did": "did",
}


def events(
    url: Url = None,
    go_on: Annotated[bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="A line of JSON for each.")] = False,
) -> None:
    """What happened: engines that died, started, came back; requests that moved or were tried again."""
    told: dict[int, int] = {}
    with follow(url) as coming:
        for event in coming:
            if event["type"] == "requests":
                continue
            if event["type"] == "snapshot":
                told = {} if not event["story"] else {n: told[n] for n in told if n <= event["story"][-1]["number"]}
            for chapter in event["story"]:
                if told.get(chapter["number"]) != chapter["count"]:
                    told[chapter["number"]] = chapter["count"]
                    sys.stdout.write((json.dumps(chapter) if as_json else sentence(chapter)) + "\n")
            sys.stdout.flush()
            if not go_on:
                if not event["story"] and not as_json:
                    sys.stderr.write("nothing has happened since this frontend began\n")
                return
    raise NoFrontend(base_url(url), "the frontend stopped telling", "ask again: it ended, or is started anew")


def sentence(chapter: dict[str, Any]) -> str:
    """A chapter that grows is told again, with its new count."""
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(chapter["at_s"]))
    kind, count, names = chapter["kind"], chapter["count"], ", ".join(chapter["subjects"])
    if kind == "moved":
        said = f"{count} stream{'s' * (count > 1)} moved on from {names}"
    elif kind == "retried":
        said = f"{count} request{'s' * (count > 1)} tried again after {names}"
    else:
        times = f" ({count} times)" * (count > len(chapter["subjects"]))
        said = f"{names} {ENGINES_DO.get(kind, kind)}{times}"
    return f"{at}  {said}" + f": {chapter['detail']}" * bool(chapter["detail"])
