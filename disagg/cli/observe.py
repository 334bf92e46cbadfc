"""`disagg status` and `disagg logs`: what a running deployment says of itself. Any frontend answers."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Annotated, Any
from urllib.parse import quote

import typer

from disagg.errors import StartError
from disagg.logfile import ASKED_LINES_MAX

DEFAULT_URL = "http://127.0.0.1:8000"
KEY_VARIABLE = "DISAGG_API_KEY"
ANSWER_S = 15.0  # more than a frontend waits for the controller
PIPE_WIDTH = 200

Url = Annotated[
    str | None,
    typer.Option(
        help=f"A frontend; else $DISAGG_URL, else {DEFAULT_URL}. Where it asks for a key, ${KEY_VARIABLE} is sent."
    ),
]


def ask(url: str | None, path: str, method: str = "GET", **parameters: Any) -> Any:
    """The JSON (or text) that a frontend answers; StartError where none does or it says no."""
    import httpx

    base = base_url(url)
    try:
        answer = httpx.request(
            method, base + path, params=parameters, headers=_key(), timeout=ANSWER_S, trust_env=False
        )
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise StartError(
            base, f"no frontend answers: {error}", "is it serving? name it with --url or DISAGG_URL"
        ) from None
    is_json = "json" in answer.headers.get("content-type", "")
    if answer.status_code != 200:
        message = answer.json()["error"]["message"] if is_json else answer.text
        raise StartError(base + path, f"{answer.status_code}: {message}", _about_keys(answer.status_code))
    return answer.json() if is_json else answer.text


def base_url(url: str | None) -> str:
    """The frontend's address. A /v1 at its end, as `disagg serve` prints it for OpenAI's clients, is cut off."""
    return (url or os.environ.get("DISAGG_URL") or DEFAULT_URL).rstrip("/").removesuffix("/v1")


def _key() -> dict[str, str]:
    """The header with the operator's key: an admin key, or an API key where the deployment has no admin keys."""
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not key.isascii() or not key.isprintable():
        raise StartError(f"${KEY_VARIABLE}", "is no key: it has a letter that no key has", "set it again")
    return {"authorization": f"Bearer {key}"} if key else {}


def _about_keys(status: int) -> str:
    if status not in (401, 403):
        return ""
    if os.environ.get(KEY_VARIABLE):
        return f"the key here is that of ${KEY_VARIABLE}"
    return f"put the key into {KEY_VARIABLE}" if status == 401 else ""


def status(
    url: Url = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    request: Annotated[
        str | None, typer.Option(help="One request, by its x-request-id: its timeline, and why it went there.")
    ] = None,
) -> None:
    """Engines with their states, or one request's timeline, and why it went where it went."""
    found = ask(url, f"/disagg/requests/{quote(request, safe='')}" if request else "/disagg/status")
    if as_json:
        sys.stdout.write(json.dumps(found, indent=1) + "\n")
    elif request:
        _print_timeline(found)
    else:
        _print_engines(found)


def logs(
    engine: Annotated[str | None, typer.Argument(help="An engine's id; without one, all of them.")] = None,
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, max=ASKED_LINES_MAX)] = 200,
    rank: Annotated[int | None, typer.Option(min=0, help="Only what this dp rank says.")] = None,
    url: Url = None,
) -> None:
    """The last lines of an engine's log; of one over several nodes, those of each node."""
    engines = [engine] if engine else [e["id"] for e in ask(url, "/disagg/status")["engines"]]
    for name in engines:
        text = ask(url, f"/disagg/logs/{quote(name, safe='')}", lines=lines)
        prefix = "" if engine else f"{name} | "
        shown = text.splitlines() if rank is None else of_rank(text.splitlines(), rank)
        sys.stdout.writelines(f"{prefix}{line}\n" for line in shown)


def of_rank(lines: Iterable[str], rank: int) -> Iterator[str]:
    """SGLang begins its lines with `[time DP0 TP0]`; what follows without such a head belongs to the line before."""
    is_meant = False
    for line in lines:
        head = re.match(r"\[[^\]]*\]", line)
        if line.startswith("==> node "):
            yield line
        elif head is not None:
            is_meant = re.search(rf"\bDP{rank}\b", head[0]) is not None
        if is_meant and not line.startswith("==> node "):
            yield line


def _print_engines(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("engine", "role", "state", "life", "node", "ranks", "in flight", "lane", "since", "detail", box=None)
    for e in found["engines"]:
        age = f"{time.time() - e['since']:.0f} s"
        in_flight = " + ".join(map(str, e["in_flight_by_rank"])) or "0"
        cells = (e["role"], e["state"], e["incarnation"], e["node"], e["ranks"], in_flight, e["lane"], age)
        switched_off = ", ".join(f"without {part}" for part in e.get("switched_off", ()))  # its SGLang does not fit it
        table.add_row(e["id"], *map(str, cells), (e["detail"].splitlines() or [switched_off])[0])
    width = None if sys.stdout.isatty() else PIPE_WIDTH  # rich would cut the columns to 80
    Console(width=width).print(f"{found['model']}: {'ready' if found['ready'] else 'not ready'}", table, sep="\n")


def _print_timeline(found: dict[str, Any]) -> None:
    from disagg.cli.explained import why_there

    for event, at_ms in found["timeline_ms"].items():
        sys.stdout.write(f"{at_ms:12.3f} ms  {event}\n")
    for name, value in found.items():
        if name not in ("timeline_ms", "routed"):
            sys.stdout.write(f"{name:>15}  {value}\n")
    sys.stdout.write("\n" + "".join(f"{sentence}\n" for sentence in why_there(found)))
