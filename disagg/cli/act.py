"""`disagg drain` and `disagg cancel`: what an operator asks of a running deployment. Any frontend takes it.

Way:   command line -> [drain, cancel] =HTTP=> a frontend -> the controller
Fails: StartError when the frontend refuses, or an engine is not down (or ready again) WAIT_S later; NotSaidYes where
       it is the last one of its role that is ready, and nobody says that it may go
"""

from __future__ import annotations

import sys
import time
from typing import Annotated, Any
from urllib.parse import quote

import typer

from disagg.cli.observe import Url, ask
from disagg.cli.ordering import say_yes
from disagg.errors import StartError

POLL_S = 0.5
WAIT_S = 900.0  # deadlines.drain_s and deadlines.start_s at their defaults, and some


def drain(
    engine: Annotated[str, typer.Argument(help="An engine's id, as `disagg status` shows it.")],
    restart: Annotated[
        bool, typer.Option("--restart", help="Then start it again; also starts one that was drained before.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Return when it is down (with --restart: ready again).")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Also the last ready engine of its role: do not ask.")] = False,
    url: Url = None,
) -> None:
    """Take an engine out of service: no new work, what runs ends or moves to other engines, then it stops."""
    engines = _engines(url)
    before = _engine(engines, engine)
    if not yes:
        _ask_about_the_last(before, engines)
    more = {"restart": 1} if restart else {}
    ask(url, f"/disagg/engines/{quote(engine, safe='')}/drain", method="POST", **more)
    if not wait:
        sys.stdout.write(f"{engine} drains; see `disagg status`\n")
        return
    until_s = time.monotonic() + WAIT_S
    while not is_over(now := _engine(_engines(url), engine), before["incarnation"], restart):
        if time.monotonic() > until_s:
            raise StartError(engine, f"it is {now['state']} after {WAIT_S:g} s: {now['detail']}", "see its log")
        time.sleep(POLL_S)
    sys.stdout.write(f"{engine} is {'ready again' if restart else now['detail']}\n")


def cancel(
    request: Annotated[str, typer.Argument(help="A request's id: its x-request-id, or the id in its answer.")],
    url: Url = None,
) -> None:
    """Cancel a running request, in whatever phase it is."""
    ask(url, f"/v1/requests/{quote(request, safe='')}", method="DELETE")
    sys.stdout.write(f"{request} is cancelled\n")


def is_over(engine: dict[str, Any], incarnation_before: int, restart: bool) -> bool:
    if restart:
        return bool(engine["incarnation"] > incarnation_before and engine["state"] == "ready")
    return bool(engine["state"] == "dead")


def _ask_about_the_last(engine: dict[str, Any], engines: list[dict[str, Any]]) -> None:
    """Raises NotSaidYes where nobody says that the last ready engine of a role may go."""
    kind = engine["role"], engine.get("group")
    ready = [each["id"] for each in engines if (each["role"], each.get("group")) == kind and each["state"] == "ready"]
    if ready == [engine["id"]]:
        what = f"it is the last {engine['role']} engine that is ready, and what needs one is refused without it"
        say_yes(f"drain {engine['id']}", what)


def _engines(url: str | None) -> list[dict[str, Any]]:
    return list(ask(url, "/disagg/status")["engines"])


def _engine(engines: list[dict[str, Any]], engine_id: str) -> dict[str, Any]:
    found = next((engine for engine in engines if engine["id"] == engine_id), None)
    if found is None:
        raise StartError(engine_id, "there is no such engine", f"there are {', '.join(e['id'] for e in engines)}")
    return dict(found)
