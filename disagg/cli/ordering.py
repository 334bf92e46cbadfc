"""Hands an order to a deployment that serves: what it would do is shown, what it costs is asked, how it goes is told.

Way:   a command of change.py -> [give] =HTTP=> a frontend -> the controller
Fails: StartError when it is refused, or did not succeed; NotSaidYes when a question was not answered with yes. A
       command that is interrupted has changed nothing: the controller goes on, and the same command joins it
"""

from __future__ import annotations

import sys
import time
from typing import Any

import msgspec
import typer

from disagg import stopping
from disagg.cli import observe
from disagg.errors import StartError
from disagg.registry.orders import Answer, Asked, Order, Progress, Stage, Status, Stop

POLL_S = 0.5
ANSWER_S = 170.0  # more than a frontend waits for the controller, whose preflight looks at every node
AWAY_S = 60.0  # a frontend that died is started again


class NotSaidYes(StartError):
    """Nothing was begun."""


def give(url: str | None, order: Order, *, yes: bool, wait: bool, dry_run: bool = False) -> None:
    seen = _ask(url, Asked(order, yes=yes, dry_run=True))
    _say(*seen.lines)
    if dry_run:
        _say(*([f"this takes service away: {seen.question}"] if seen.question else []))
        _say("nothing was changed: --dry-run")
        return
    if not seen.change:
        if seen.question and not yes:
            say_yes(str(order), seen.question)
        seen = _ask(url, Asked(order, yes=yes or bool(seen.question)))
    if not seen.change:
        _say("there is nothing to do")
    elif isinstance(order, Stop):
        _until_gone(url, wait=wait)
    elif wait:
        follow(url, seen.change)
    else:
        _say(f"{order} is under way; `disagg revisions --wait` tells how it goes")


def say_yes(what: str, question: str) -> None:
    """Returns when somebody at the terminal does; raises NotSaidYes."""
    if not sys.stdin.isatty():
        raise NotSaidYes(what, f"nothing was changed: {question}", "say --yes to do it all the same")
    if not typer.confirm(f"{question}. Go on?"):
        raise NotSaidYes(what, "nothing was changed")


def follow(url: str | None, number: int) -> None:
    """Prints the lines of a change as they come. Raises StartError when it did not succeed."""
    told, away_since_s = 0, 0.0
    with stopping.farewell(lambda: _say("it goes on without this command; the same command joins it")):
        while True:
            try:
                change = status(url).change
                away_since_s = 0.0
            except observe.NoFrontend:
                away_since_s = away_since_s or time.monotonic()
                if time.monotonic() - away_since_s > AWAY_S:
                    raise
                change = None
            if change is not None:
                if change.number != number:
                    _say(f"another change has followed: {change.what}")
                    return
                _say(*change.lines[told:])
                told = len(change.lines)
                if change.stage is not Stage.RUNNING:
                    return _ended(change)
            time.sleep(POLL_S)


def status(url: str | None, show: int = 0) -> Status:
    return msgspec.convert(observe.ask(url, "/disagg/revisions", show=show), Status)


def _ask(url: str | None, asked: Asked) -> Answer:
    body = msgspec.json.encode(asked)
    said: Any = observe.asked(url, "/disagg/changes", "POST", body=body, limit_s=ANSWER_S)
    return msgspec.convert(said, Answer)


def _ended(change: Progress) -> None:
    if change.stage is not Stage.DONE:
        raise StartError(change.what, f"{change.stage}: {change.why}")


def _until_gone(url: str | None, *, wait: bool) -> None:
    _say("the deployment stops")
    while wait:
        try:
            status(url)
        except StartError:
            _say("no frontend answers any more")
            return
        time.sleep(POLL_S)


def _say(*lines: str) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()
