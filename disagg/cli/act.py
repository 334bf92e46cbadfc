"""`disagg drain` and `disagg cancel`: what an operator asks of a running deployment. Any frontend takes it.

Way:   command line -> [drain, cancel] =HTTP=> a frontend -> the controller
Fails: StartError when the frontend refuses, or an engine is not down (or ready again) WAIT_S later
"""

from __future__ import annotations

import sys
import time
from typing import Annotated, Any
from urllib.parse import quote

import typer

from disagg.cli.observe import Url, ask
from disagg.errors import StartError

POLL_S = 0.5
WAIT_S = 900.0  # deadlines.drain_s and deadlines.start_s at their defaults, and some


def drain(
    engine: Annotated[str, typer.Argument(help="An engine's id, as `disagg status` shows it.")],
    restart: Annotated[
        bool, typer.Option("--restart", help="Then start it again; also starts one that was drained before.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Return when it is down (with --restart: ready again).")] = False,
    url: Url = None,
) -> None:
    """Take an engine out of service: no new work, what runs ends or moves to other engines, then it stops."""
    before = _engine(url, engine)
    more = {"restart": 1} if restart else {}
    ask(url, f"/disagg/engines/{quote(engine, safe='')}/drain", method="POST", **more)
    if not wait:
        sys.stdout.write(f"{engine} drains; see `disagg status`\n")
        return
    until_s = time.monotonic() + WAIT_S
    while not is_over(now := _engine(url, engine), before["incarnation"], restart):
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


def _engine(url: str | None, engine_id: str) -> dict[str, Any]:
    engines = ask(url, "/disagg/status")["engines"]
    found = next((engine for engine in engines if engine["id"] == engine_id), None)
    if found is None:
        raise StartError(engine_id, "there is no such engine", f"there are {', '.join(e['id'] for e in engines)}")
    return dict(found)
