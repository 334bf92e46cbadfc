"""`disagg events` tells the story that the page has; `disagg top` is live, and leaves the terminal as it was."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "frontend"))  # tests share certificates.py

from certificates import Authority
from typer.testing import CliRunner

from disagg.cli.app import app
from disagg.cli.events import sentence
from disagg.cli.feed import Seen
from disagg.cli.observe import CA_VARIABLE, CERT_VARIABLE, NoFrontend, trust
from disagg.cli.top import Follower

COLUMNS = ["at_s", "made", "read", "ended", "failed", "running", "queued", "ttft_ms_p50", "ttft_ms_p99"]


def _engine(name: str, state: str = "ready") -> dict[str, Any]:
    role = name.partition("-")[0]
    return {"id": name, "role": role, "state": state, "ranks": 1, "restarts": 0, "detail": "", "kv_tokens": 1000}


def _chapter(number: int, kind: str, *subjects: str, count: int = 1) -> dict[str, Any]:
    return {"number": number, "at_s": 1e9, "kind": kind, "subjects": list(subjects), "count": count, "detail": ""}


SNAPSHOT = {
    "type": "snapshot",
    "at_s": 1e9,
    "model": "a-model",
    "engines": [_engine("prefill-0"), *(_engine(f"decode-{number}") for number in range(40))],
    "loads": {"decode-0": [[3, 500, 120, 0]]},
    "history": [[1e9, 1234, 0, 1, 0, 3, 2, 45.0, None]],
    "columns": COLUMNS,
    "phases": {},
    "silent": [],
    "peers": {},
    "story": [_chapter(0, "dead", "decode-1"), _chapter(1, "moved", "decode-1#1", count=4)],
}
LISTS = {
    "type": "requests",
    "live": [
        {"id": "a" * 32, "phase": "decoding", "age_s": 1.5, "prompt_tokens": 7, "tokens": 9, "decode": "decode-0#1/0"}
    ],
    "ended": [],
}
TICK = {
    **{"type": "tick", "at_s": 1e9 + 1, "engines": [_engine("decode-1", "starting")], "gone": ["decode-2"]},
    **{"loads": {}, "peers": {}, "sample": [1e9 + 1, 77, 0, 1, 0, 3, 0, None, None], "phases": {}, "silent": []},
    "story": [_chapter(1, "moved", "decode-1#1", count=6), _chapter(2, "starting", "decode-1")],
}


@contextmanager
def frontend(*events: dict[str, Any], status: int = 200, stays: bool = False) -> Iterator[str]:
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            if status != 200:
                body = b'{"error": {"message": "no valid admin key"}}'
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
                return
            self.end_headers()
            for event in events:
                self.wfile.write(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())
            self.wfile.flush()
            if stays:
                over.wait(60)

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        over.set()
        server.shutdown()
        server.server_close()
        thread.join()


def _events(url: str, *more: str) -> list[str]:
    """With -f, until the frontend stops: that is told."""
    done = CliRunner().invoke(app, ["events", "--url", url, *more])
    if more:
        assert isinstance(done.exception, NoFrontend)
        assert "stopped telling" in str(done.exception)
    else:
        assert done.exit_code == 0
    return [re.sub(r"^\S+ \S+  ", "", line) for line in done.stdout.splitlines()]


def test_the_story_so_far() -> None:
    with frontend(SNAPSHOT, LISTS, TICK) as url:
        assert _events(url) == ["decode-1 died", "4 streams moved on from decode-1#1"]


def test_what_comes_is_told_as_it_comes_and_what_grows_again() -> None:
    with frontend(SNAPSHOT, LISTS, TICK, LISTS) as url:
        assert _events(url, "-f") == [
            "decode-1 died",
            "4 streams moved on from decode-1#1",
            "6 streams moved on from decode-1#1",
            "decode-1 starts",
        ]


def test_a_snapshot_that_comes_again_tells_nothing_twice() -> None:
    with frontend(SNAPSHOT, TICK, {**SNAPSHOT, "story": [*SNAPSHOT["story"][:1], *TICK["story"]]}) as url:  # type: ignore[index,misc]
        assert len(_events(url, "-f")) == 4


def test_a_frontend_that_tells_nothing_is_told() -> None:
    with frontend() as url:
        done = CliRunner().invoke(app, ["events", "--url", url])
    assert isinstance(done.exception, NoFrontend)


def test_what_ends_the_feed_of_top_is_raised_where_it_is_seen() -> None:
    with frontend(SNAPSHOT, {"type": "of a later release"}, stays=True) as url:
        follower = Follower(url)
        follower.start()
        follower._thread.join(10)
        with pytest.raises(KeyError):
            follower.check()


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl")
def test_the_systems_authorities_are_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CA_VARIABLE, raising=False)
    monkeypatch.delenv(CERT_VARIABLE, raising=False)
    monkeypatch.setenv("SSL_CERT_FILE", str(Authority(tmp_path, "of-this-system").cert))
    (known,) = trust().get_ca_certs()
    assert "of-this-system" in str(known)


def test_as_json() -> None:
    with frontend(SNAPSHOT) as url:
        done = CliRunner().invoke(app, ["events", "--json", "--url", url], catch_exceptions=False)
    assert [json.loads(line)["kind"] for line in done.stdout.splitlines()] == ["dead", "moved"]


def test_a_frontend_that_refuses_is_told() -> None:
    with frontend(status=401) as url:
        done = CliRunner().invoke(app, ["events", "--url", url])
    assert "no valid admin key" in str(done.exception)
    assert "DISAGG_API_KEY" in str(done.exception)


@pytest.mark.parametrize(
    ("chapter", "said"),
    [
        (_chapter(0, "dead", "a", "b", count=5), "a, b died (5 times)"),
        (_chapter(0, "retried", "a#1"), "1 request tried again after a#1"),
        ({**_chapter(0, "quarantined", "a"), "detail": "it hangs"}, "a set aside: it hangs"),
    ],
)
def test_sentences(chapter: dict[str, Any], said: str) -> None:
    assert sentence(chapter).endswith(f"  {said}")


def test_what_the_events_add_up_to() -> None:
    seen = Seen()
    for event in (SNAPSHOT, LISTS, TICK):
        seen.take(event)
    assert (seen.engines["decode-1"]["state"], "decode-2" in seen.engines) == ("starting", False)
    assert (seen.now("made"), seen.now("ttft_ms_p99")) == (77, None)
    assert seen.story[1]["count"] == 6
    assert len(seen.live) == 1


class Terminal:
    """`disagg top` on a pseudo terminal of 40 lines, and what it has written so far."""

    def __init__(self, url: str) -> None:
        self.master, slave = pty.openpty()
        termios.tcsetwinsize(slave, (40, 140))
        self.before = termios.tcgetattr(slave)
        self.slave, self.text = slave, ""
        words = [sys.executable, "-m", "disagg.cli.main", "top", "--url", url]
        environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "140", "LINES": "40"}
        self.process = subprocess.Popen(words, stdin=slave, stdout=slave, stderr=slave, env=environment)

    def wait_for(self, word: str, limit_s: float = 30.0) -> None:
        self.text, end_s = "", time.monotonic() + limit_s
        while word not in self.text:
            assert time.monotonic() < end_s, f"no {word!r} in {self.text[-3000:]!r}"
            self.read()

    def read(self) -> None:
        if select.select([self.master], [], [], 0.2)[0]:
            self.text += os.read(self.master, 1 << 16).decode(errors="replace")

    def press(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def ended(self) -> int:
        end_s = time.monotonic() + 30
        while self.process.poll() is None:
            assert time.monotonic() < end_s
            self.read()
        return self.process.returncode

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.master)
        os.close(self.slave)


@contextmanager
def top(url: str) -> Iterator[Terminal]:
    terminal = Terminal(url)
    try:
        yield terminal
    finally:
        terminal.close()


def test_top_shows_it_live_moves_and_ends_at_q() -> None:
    with frontend(SNAPSHOT, LISTS, TICK, stays=True) as url, top(url) as terminal:
        terminal.wait_for("decode-0")
        assert "a-model" in terminal.text
        assert "██" in terminal.text
        terminal.wait_for("6 streams moved on from decode-1#1")
        terminal.press("\x1b[B")
        terminal.wait_for("engine 2 of 40 first")
        terminal.press("\x1b[A")
        terminal.wait_for("arrows move")
        terminal.press("q")
        assert terminal.ended() == 0
        assert termios.tcgetattr(terminal.slave) == terminal.before
        assert "\x1b[?1049l" in terminal.text  # the screen that was there before is back


def test_top_leaves_the_terminal_as_it_was_at_ctrl_c() -> None:
    with frontend(SNAPSHOT, LISTS, stays=True) as url, top(url) as terminal:
        terminal.wait_for("decode-0")
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.ended() == 130
        assert termios.tcgetattr(terminal.slave) == terminal.before


def test_top_waits_for_a_frontend_that_goes_away_and_says_so() -> None:
    with frontend(SNAPSHOT, LISTS) as url, top(url) as terminal:
        terminal.wait_for("asked again")
        terminal.press("q")
        assert terminal.ended() == 0


def test_top_where_no_frontend_is_ends_with_a_remedy() -> None:
    with top("http://127.0.0.1:1") as terminal:
        assert terminal.ended() == 1
        for _ in range(5):
            terminal.read()
        assert "no frontend answers" in terminal.text
        assert termios.tcgetattr(terminal.slave) == terminal.before


def test_top_needs_a_terminal() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "disagg.cli.main", "top"],
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 1
    assert "needs a terminal" in done.stderr
