"""Text that a client, a model or an engine chose stays text: in our logs, on a terminal, on the page."""

from __future__ import annotations

import io
import json
import logging
import os
from pathlib import Path
from typing import Any

import httpx
import pytest
from rich.console import Console
from typer.testing import CliRunner

import disagg.frontend.page
from disagg.cli.app import app
from disagg.cli.feed import Seen
from disagg.cli.top import picture
from disagg.registry.orders import Apply
from disagg.telemetry.stderr_log import LossyStderr
from disagg.visible import LogLines, all_visible, one_line, visible

CLEARS, TITLE, BELL, CSI = "\x1b[2J\x1b[H", "\x1b]0;owned\x07", "\x07", "\x9b31m"
TURNS, ISOLATES, ENDS, RETURNS = "\u202egnp.exe", "\u2066x\u2069", "\u2028x\u2029\x85", "safe\roverwritten"
HARMS = [CLEARS, TITLE, BELL, CSI, TURNS, ISOLATES, ENDS, RETURNS, "\x00", "\x7f", "\b\b\b", "\x0b\x0c", "\ufeff"]
FORGED = "\n[2026-12-01 12:00:00,000] audit: all is well"
MARKUP = "[bold red]x[/] [/nothing]"
EVERYTHING = "".join(HARMS) + FORGED + MARKUP


def harm_in(shown: str) -> list[str]:
    """What a terminal, or who reads lines, would take for more than text."""
    return [repr(each) for each in shown if each != "\n" and not each.isprintable()]


@pytest.mark.parametrize("harm", HARMS, ids=ascii)
def test_it_is_shown_as_its_escape(harm: str) -> None:
    shown = visible(f"a {harm} b\tc\nd")
    assert harm_in(shown.replace("\t", "")) == []
    assert (shown[:2], shown[-5:]) == ("a ", "b\tc\nd"[-5:])
    assert "\n" not in one_line(harm + "\n")
    assert harm_in(json.dumps(all_visible({harm: [harm]}), ensure_ascii=False)) == []


def test_what_harms_nobody_stays() -> None:
    for text in ("Grüße, 你好, مرحبا, 👩‍💻", "a\tb\nc", r"C:\new [x]"):
        assert visible(text) == text


def test_a_log_entry_cannot_be_forged() -> None:
    read, write = os.pipe()
    handler = LossyStderr(write)
    handler.setFormatter(LogLines("[%(asctime)s] %(name)s: %(message)s"))
    log = logging.Logger("a-test")
    log.addHandler(handler)
    log.warning("no model %s", EVERYTHING)
    try:
        raise ValueError(EVERYTHING)
    except ValueError:
        log.exception("an error nobody foresaw")
    handler.flush()
    os.close(write)
    with os.fdopen(read, newline="\n") as file:
        said = file.read()
    assert harm_in(said) == []
    entries = [line for line in said.split("\n") if line.startswith("[")]
    assert [entry.partition("] ")[2][:7] for entry in entries] == ["a-test:", "a-test:"]


# What a frontend answers, with text of the worst kind wherever there is any.
ENGINE: dict[str, Any] = {
    **{"id": f"decode-0{MARKUP}{CLEARS}", "role": "decode", "state": "dead", "incarnation": 1, "node": CSI},
    **{"ranks": 1, "in_flight_by_rank": [0], "lane": TITLE, "since": 0, "restarts": 3, "detail": EVERYTHING},
    **{"devices": "", "switched_off": [TURNS], "peers": [], "kv_tokens": 10},
}
TIMELINE = {"timeline_ms": {"received": 0.0}, "client_request_id": EVERYTHING}
TOLD: dict[str, Any] = {
    "/disagg/status": {"model": EVERYTHING, "ready": False, "engines": [ENGINE], "frontend": {"queued": 0, "live": []}},
    "/disagg/revisions": {"revisions": [{"number": 1, "at_s": 0.0, "what": str(Apply("", EVERYTHING))}]},
    "/disagg/loads": {},
}
CHAPTER = {"number": 0, "at_s": 0.0, "kind": CLEARS, "subjects": [MARKUP + TITLE], "count": 1, "detail": EVERYTHING}
SNAPSHOT: dict[str, Any] = {
    **{
        "type": "snapshot",
        "at_s": 1.0,
        "model": EVERYTHING,
        "engines": [ENGINE],
        "history": [],
        "columns": [],
        "silent": [],
    },
    **{"phases": {}, "loads": {ENGINE["id"]: [[1, 2, 3, 4]]}, "story": [CHAPTER]},
}


def answer(_method: str, url: str, **_: Any) -> httpx.Response:
    path = httpx.URL(url).path
    if path.startswith("/disagg/logs/"):
        return httpx.Response(200, text=EVERYTHING)
    if path == "/metrics":
        return httpx.Response(200, text="")
    if path == "/disagg/engines/x/drain":
        return httpx.Response(409, json={"error": {"message": EVERYTHING}})
    return httpx.Response(200, json=TOLD.get(path, TIMELINE))


@pytest.fixture
def _frontend(monkeypatch: pytest.MonkeyPatch) -> None:
    feed = f"data: {json.dumps(SNAPSHOT)}\n\n"
    monkeypatch.delenv("DISAGG_URL", raising=False)
    monkeypatch.setattr(httpx, "request", answer)
    transport = httpx.MockTransport(lambda _: httpx.Response(200, text=feed))
    usual = httpx.Client
    monkeypatch.setattr(httpx, "Client", lambda **said: usual(transport=transport))


COMMANDS = [
    ["status"], ["status", "--json"], ["status", "--request", "x"], ["logs", "decode-0"], ["events"], ["doctor"],
    ["revisions"], ["drain", "x", "--yes"],
]  # fmt: skip


@pytest.mark.usefixtures("_frontend")
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_terminal_is_shown_text_alone(command: list[str]) -> None:
    done = CliRunner().invoke(app, command)
    said = done.output + str(done.exception or "")
    assert len(said) > 20
    assert harm_in(said) == []


def test_top_shows_text_alone() -> None:
    seen = Seen()
    seen.take(all_visible(SNAPSHOT))
    live = {"id": MARKUP, "phase": "decoding", "age_s": 1.0, "prompt_tokens": 1, "tokens": 1, "prefill": MARKUP}
    seen.take({"type": "requests", "live": [live], "ended": []})
    console = Console(width=200, file=io.StringIO(), color_system=None)
    console.print(picture(seen, "", 0, 40))
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert harm_in(said) == []
    assert "[bold red]" in said, "markup was obeyed"


def test_the_page_makes_no_html_of_text() -> None:
    """Trusted Types in its policy refuse it, too (disagg/frontend/page/routes.py)."""
    (folder,) = disagg.frontend.page.__path__
    scripts = list(Path(folder, "static").glob("*.js"))
    assert len(scripts) > 5
    for script in scripts:
        for way in (
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "new Function",
            "srcdoc",
        ):
            assert way not in script.read_text(), script
