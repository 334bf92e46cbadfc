"""`disagg status`: what a running deployment says of itself. Any frontend answers."""

from __future__ import annotations

import json
import os
import ssl
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, NoReturn
from urllib.parse import quote

import typer

from disagg.errors import StartError
from disagg.visible import all_visible, visible

if TYPE_CHECKING:
    import httpx

DEFAULT_URL = "http://127.0.0.1:8000"
KEY_VARIABLE = "DISAGG_API_KEY"
CA_VARIABLE, CERT_VARIABLE = "DISAGG_CA", "DISAGG_CLIENT_CERT"
GATEWAY_TIMEOUT = 504  # as HTTP calls it
ANSWER_S = 15.0  # more than a frontend waits for the controller
PIPE_WIDTH = 200
WATCH_S = 2.0
CLEAR = "\033[H\033[2J"

Url = Annotated[
    str | None,
    typer.Option(
        help=f"A frontend; else $DISAGG_URL, else {DEFAULT_URL}. Where it asks for a key, ${KEY_VARIABLE} is sent."
    ),
]


class NoFrontend(StartError):
    """None answers: it may be started again just now, or the deployment has ended."""


class NotInTime(StartError):
    """A frontend answers, but the controller behind it did not answer it in time: it may the next time."""


def ask(url: str | None, path: str, method: str = "GET", **parameters: Any) -> Any:
    """The JSON (or text) that a frontend answers; NoFrontend where none does, StartError where it says no."""
    return asked(url, path, method, parameters)


def asked(
    url: str | None,
    path: str,
    method: str,
    parameters: Any = None,
    body: bytes | None = None,
    limit_s: float = ANSWER_S,
) -> Any:
    """The same, with a body. Raises NoFrontend, or StartError."""
    import httpx

    base = base_url(url)
    try:
        answer = httpx.request(
            method,
            base + path,
            params=parameters,
            content=body,
            headers=headers(),
            timeout=limit_s,
            trust_env=False,
            verify=trust(),
        )
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise unreachable(base, error) from None
    if answer.status_code != 200:
        raise refusal(base + path, answer)
    return all_visible(answer.json()) if _is_json(answer) else visible(answer.text)


def unreachable(base: str, error: Exception) -> NoFrontend:
    would_do = "is it serving? name it with --url or DISAGG_URL"
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        would_do = f"name who signed its certificate with `disagg --ca FILE`, or {CA_VARIABLE}"
    return NoFrontend(base, f"no frontend answers: {error}", would_do)


def trust() -> ssl.SSLContext:
    """Whom to believe that a frontend with TLS is what it says: the system's authorities, not those that httpx brings.
    Raises StartError."""
    ca, cert = os.environ.get(CA_VARIABLE), os.environ.get(CERT_VARIABLE)
    try:
        context = ssl.create_default_context(cafile=ca or None)
        if cert:
            context.load_cert_chain(cert)
    except (OSError, ssl.SSLError) as error:
        named = f"${CA_VARIABLE}" + f", ${CERT_VARIABLE}" * bool(cert)
        raise StartError(named, f"cannot be used: {error}", "name PEM files") from None
    return context


def refusal(where: str, answer: httpx.Response) -> StartError:
    message = visible(answer.json()["error"]["message"] if _is_json(answer) else answer.text)
    kind = NotInTime if answer.status_code == GATEWAY_TIMEOUT else StartError
    return kind(where, f"{answer.status_code}: {message}", _about_keys(answer.status_code))


def _is_json(answer: httpx.Response) -> bool:
    return "json" in answer.headers.get("content-type", "")


def base_url(url: str | None) -> str:
    """The frontend's address. A /v1 at its end, as `disagg serve` prints it for OpenAI's clients, is cut off."""
    return (url or os.environ.get("DISAGG_URL") or DEFAULT_URL).rstrip("/").removesuffix("/v1")


def headers() -> dict[str, str]:
    """With the operator's key: an admin key, or an API key where there are no admin keys. Raises StartError."""
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
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Again and again, until Ctrl-C.")] = False,
) -> None:
    """Engines with their states, or one request's timeline, and why it went where it went."""
    if watch:
        _watch(lambda: _show(url, request, as_json=as_json))
    _show(url, request, as_json=as_json)


def _watch(show: Callable[[], None]) -> NoReturn:
    """On a terminal each picture replaces the one before it."""
    while True:
        if sys.stdout.isatty():
            sys.stdout.write(CLEAR)
        try:
            show()
        except StartError as error:  # it may come back: a frontend that is started again
            sys.stdout.write(f"{error}\n")
        sys.stdout.flush()
        time.sleep(WATCH_S)


def _show(url: str | None, request: str | None, *, as_json: bool) -> None:
    found = ask(url, f"/disagg/requests/{quote(request, safe='')}" if request else "/disagg/status")
    if as_json:
        sys.stdout.write(json.dumps(found, indent=1) + "\n")
    elif request:
        _print_timeline(found)
    else:
        _print_engines(found)


def _print_engines(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    names = Column("engine", min_width=max((len(e["id"]) for e in found["engines"]), default=0))  # never cut short
    table = Table(names, "role", "state", "life", "node", "ranks", "in flight", "lane", "since", "detail", box=None)
    for e in found["engines"]:
        age = f"{time.time() - e['since']:.0f} s"
        in_flight = " + ".join(map(str, e["in_flight_by_rank"])) or "0"
        cells = (e["role"], e["state"], e["incarnation"], e["node"], e["ranks"], in_flight, e["lane"], age)
        switched_off = ", ".join(f"without {part}" for part in e.get("switched_off", ()))  # its SGLang does not fit it
        detail = (e["detail"].splitlines() or [switched_off])[0]
        table.add_row(*(Text(str(cell)) for cell in (e["id"], *cells, detail)))  # nothing in them is rich's markup
    width = None if sys.stdout.isatty() else PIPE_WIDTH  # rich would cut the columns to 80
    console = Console(width=width)
    states = [f"{each['model']}: {'ready' if each['ready'] else 'not ready'}" for each in found.get("models", [found])]
    console.print(*map(Text, states), table, sep="\n")
    for frontend in found.get("frontends", ()):
        is_silent = frontend.get("silent")
        said = "silent" if is_silent else f"{frontend['requests']} requests, of which {frontend['queued']} wait"
        console.print(f"frontend {frontend['number']}: {said}")


def _print_timeline(found: dict[str, Any]) -> None:
    from disagg.cli.explained import why_there

    for event, at_ms in found["timeline_ms"].items():
        sys.stdout.write(f"{at_ms:12.3f} ms  {event}\n")
    for name, value in found.items():
        if name not in ("timeline_ms", "routed"):
            sys.stdout.write(f"{name:>15}  {value}\n")
    sys.stdout.write("\n" + "".join(f"{sentence}\n" for sentence in why_there(found)))
