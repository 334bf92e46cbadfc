"""How `disagg status` and the others reach a frontend: its URL, its key, and what is said when it does not answer."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from disagg.cli.app import app
from disagg.cli.observe import ask
from disagg.config.frontend import FrontendSection
from disagg.errors import StartError


class Frontends:
    """Answers instead of the network."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answer = httpx.Response(200, json={})
        self.asked: list[tuple[str, dict[str, str]]] = []
        monkeypatch.setattr(httpx, "request", self._request)

    def _request(self, method: str, url: str, headers: dict[str, str], **_: Any) -> httpx.Response:
        self.asked.append((url, headers))
        return self.answer


@pytest.fixture
def frontends(monkeypatch: pytest.MonkeyPatch) -> Frontends:
    for name in ("DISAGG_URL", "DISAGG_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    return Frontends(monkeypatch)


@pytest.mark.parametrize("url", ["http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/"])
def test_the_url_that_serve_says_may_be_pasted(url: str, frontends: Frontends, monkeypatch: pytest.MonkeyPatch) -> None:
    ask(url, "/disagg/status")
    monkeypatch.setenv("DISAGG_URL", url)
    ask(None, "/disagg/status")
    assert frontends.asked == [("http://h:1/disagg/status", {})] * 2


def test_a_key_of_the_environment_is_sent(frontends: Frontends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISAGG_API_KEY", "sixteen letters!")
    ask(None, "/disagg/status")
    assert frontends.asked[0][1] == {"authorization": "Bearer sixteen letters!"}


def test_where_a_key_lacks_its_variable_is_named(frontends: Frontends) -> None:
    frontends.answer = httpx.Response(401, json={"error": {"message": "no valid API key"}})
    with pytest.raises(StartError, match=r"401: no valid API key; .*DISAGG_API_KEY"):
        ask(None, "/disagg/status")


def test_an_answer_without_a_type_is_told_as_it_is(frontends: Frontends) -> None:
    frontends.answer = httpx.Response(502, content=b"bad gateway")
    with pytest.raises(StartError, match="502: bad gateway"):
        ask(None, "/disagg/status")


@pytest.mark.parametrize("url", ["nonsense", "http://[", "http://127.0.0.1:1", "ftp://h"])
def test_a_url_where_no_frontend_is_gets_a_remedy(url: str) -> None:
    with pytest.raises(StartError, match=r"no frontend answers: .*; is it serving\? name it with --url or DISAGG_URL"):
        ask(url, "/disagg/status")


@pytest.mark.parametrize("command", [[], ["status"], ["logs"], ["drain"], ["cancel"]])
def test_help_names_the_variables(command: list[str]) -> None:
    text = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "200"}).output
    assert "DISAGG_API_KEY" in text
    assert "DISAGG_URL" in text


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000/v1"),
        ("::1", "http://[::1]:8000/v1"),
        ("a.example", "http://a.example:8000/v1"),
    ],
)
def test_the_base_url_is_one_that_a_client_takes(host: str, url: str) -> None:
    assert FrontendSection(host=host).base_url == url
    assert httpx.URL(url).port == 8000


def test_it_is_watched_until_ctrl_c_also_while_no_frontend_answers(
    frontends: Frontends, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = dict(id="decode-0", role="decode", state="ready", incarnation=1, node="n", ranks=1, lane="", since=0.0)
    good = httpx.Response(
        200, json={"model": "m", "ready": True, "engines": [{**engine, "detail": "", "in_flight_by_rank": [3]}]}
    )
    answers = iter([good, httpx.Response(502, content=b"bad gateway"), good])

    def next_answer(_seconds: float) -> None:
        try:
            frontends.answer = next(answers)
        except StopIteration:
            raise KeyboardInterrupt from None

    next_answer(0)
    monkeypatch.setattr("time.sleep", next_answer)
    said = CliRunner().invoke(app, ["status", "--watch"]).stdout
    assert said.count("m: ready") == 2
    assert "bad gateway" in said.split("m: ready")[1]


def test_several_frontends_are_told_apart(frontends: Frontends) -> None:
    both = [{"number": 0, "requests": 7, "queued": 2}, {"number": 1, "silent": True}]
    frontends.answer = httpx.Response(200, json={"model": "m", "ready": True, "engines": [], "frontends": both})
    said = CliRunner().invoke(app, ["status"]).stdout
    assert "frontend 0: 7 requests, of which 2 wait\nfrontend 1: silent\n" in said
