"""Hands an order to a deployment that serves: what it would do is shown, what it costs is asked, how it goes is told.

Way:   a command of change.py -> [give] =HTTP=> a frontend -> the controller
Fails: StartError when it is refused, did not succeed, or its end is not known; NotSaidYes when a question was not
       answered with yes. What was agreed to is sent with the order: it is refused if it costs something else by then. A
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
AWAY_S = 60.0  # a frontend that died is started again, a controller that is busy answers again
GONE_S = 900.0  # deadlines.stop_s at its most, and some: a deployment has ended


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
        told, agreed = seen.lines, "" if yes else seen.question
        seen = _ask(url, Asked(order, yes=yes, agreed=agreed))
        if seen.lines != told:
            _say(*seen.lines)
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
                change = _of_number(status(url), number)
                away_since_s = 0.0
            except (observe.NoFrontend, observe.NotInTime):
                away_since_s = away_since_s or time.monotonic()
                if time.monotonic() - away_since_s > AWAY_S:
                    raise
                change = None
            if change is not None:
                if change.dropped > told:
                    _say(f"({change.dropped - told} lines are kept no longer)")
                _say(*change.lines[max(0, told - change.dropped) :])
                told = change.dropped + len(change.lines)
                if change.stage is not Stage.RUNNING:
                    return _ended(change)
            time.sleep(POLL_S)


def status(url: str | None, show: int = 0) -> Status:
    return msgspec.convert(observe.ask(url, "/disagg/revisions", show=show), Status)


def _of_number(found: Status, number: int) -> Progress | None:
    """None: nothing was begun yet. Raises StartError when it is too long ago."""
    changes = [*found.earlier, *([found.change] if found.change is not None else [])]
    if changes and all(each.number != number for each in changes):
        what = f"how it ended is known no longer: others have followed, the last is {changes[-1].what}"
        raise StartError(f"change {number}", what, "`disagg revisions` lists what was wanted")
    return next((each for each in changes if each.number == number), None)


def _ask(url: str | None, asked: Asked) -> Answer:
    body = msgspec.json.encode(asked)
    said: Any = observe.asked(url, "/disagg/changes", "POST", body=body, limit_s=ANSWER_S)
    return msgspec.convert(said, Answer)


def _ended(change: Progress) -> None:
    if change.stage is not Stage.DONE:
        raise StartError(change.what, f"{change.stage}: {change.why}")


def _until_gone(url: str | None, *, wait: bool) -> None:
    """Only who answers nothing at all is gone: a frontend that refuses, or whose controller has ended, is not."""
    _say("the deployment stops")
    until_s = time.monotonic() + GONE_S
    while wait:
        refused = ""
        try:
            status(url)
        except observe.NoFrontend:
            _say("no frontend answers any more")
            return
        except StartError as error:
            refused = f": {error.message}"
        if time.monotonic() > until_s:
            raise StartError("stop", f"a frontend still answers after {GONE_S:g} s{refused}", "see the log of `serve`")
        time.sleep(POLL_S)


def _say(*lines: str) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()
