"""`disagg frontend`: what it says where it cannot even begin, and what it is told by a configuration."""

from __future__ import annotations

import os
from pathlib import Path

import click
import pytest
from typer.testing import CliRunner

from disagg.cli.app import app
from disagg.cluster import lone_frontend
from disagg.cluster.lone_frontend import Wanted
from disagg.errors import ConfigError, StartError
from disagg.registry.keys import Keys
from disagg.registry.sealed import Secret
from disagg.registry.shared import FileAt, Shared

SECRET = "0123456789abcdef" * 4
THERE = ("--registry", "file:/registry", "--deployment", "chat", "--namespace", "prod")


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[Wanted]:
    """With what a frontend would have been started."""
    found: list[Wanted] = []

    async def begin(wanted: Wanted) -> None:
        assert "DISAGG_SECRET" not in os.environ
        found.append(wanted)

    monkeypatch.setattr(lone_frontend, "serve_alone", begin)
    return found


def run(*words: str, secret: str = "") -> None:
    done = CliRunner().invoke(app, ["frontend", *words], env={"DISAGG_SECRET": secret or None})
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output


def test_what_was_said_is_wanted(begun: list[Wanted]) -> None:
    run(*THERE, "--port", "8001", "--count", "2", "--model", "m=/here", "--peer-host", "10.0.0.9", secret=SECRET)
    (wanted,) = begun
    assert wanted.shared == Shared(FileAt("/registry"), Keys("prod", "chat"))
    assert wanted.secret.plane == Secret(SECRET, Keys("prod", "chat")).plane
    assert (wanted.count, wanted.peer_host, wanted.said.port, dict(wanted.said.models)) == (
        2,
        "10.0.0.9",
        8001,
        {"m": "/here"},
    )


def test_a_configuration_says_it_all(begun: list[Wanted], tmp_path: Path) -> None:
    config = tmp_path / "chat.yaml"
    pair = "version: 1\nnamespace: prod\nmodel: {path: smollm2}\nprefill: {}\ndecode: {}\n"
    shared = 'registry: {kind: file, path: /registry}\nsecurity: {secret: "${env:DISAGG_SECRET}"}\n'
    config.write_text(pair + shared)
    run(str(config), secret=SECRET)
    assert begun[0].shared == Shared(FileAt("/registry"), Keys("prod", "chat"))
    assert begun[0].secret.plane == Secret(SECRET, Keys("prod", "chat")).plane
    config.write_text(pair)
    with pytest.raises(ConfigError, match="kind memory is in"):
        run(str(config), secret=SECRET)


def test_a_secret_in_a_file(begun: list[Wanted], tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text(SECRET + "\n")
    run(*THERE, "--secret-file", str(file))
    assert begun[0].secret.plane == Secret(SECRET, Keys("prod", "chat")).plane


@pytest.mark.parametrize(
    ("secret", "file", "said"),
    [
        ("", None, r"is empty, or not set; give this host security\.secret"),
        ("short", None, "has less than 32 random bytes"),
        ("", "nowhere", "cannot be read"),
        (SECRET, "empty", "is empty, or not set"),
    ],
)
def test_without_a_good_secret_nothing_is_begun(
    secret: str, file: str | None, said: str, begun: list[Wanted], tmp_path: Path
) -> None:
    (tmp_path / "empty").touch()
    named = ("--secret-file", str(tmp_path / file)) if file else ()
    with pytest.raises(StartError, match=said):
        run(*THERE, *named, secret=secret)
    assert begun == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "say --registry and --deployment, or a configuration"),
        (THERE[:2], "say --registry and --deployment, or a configuration"),
        (("simulated", *THERE), "say a configuration, or --registry and --deployment"),
        ((*THERE, "--model", "/here"), "is no NAME=PATH"),
    ],
)
def test_what_does_not_fit_together_is_told(words: tuple[str, ...], said: str, begun: list[Wanted]) -> None:
    with pytest.raises(click.UsageError, match=said):
        run(*words, secret=SECRET)
    assert begun == []


@pytest.mark.parametrize("name", ["DISAGG_SECRET", "DISAGG_API_KEY"])
def test_what_serve_starts_inherits_no_secret(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Also where the configuration does not name it."""
    seen: list[str | None] = []

    async def serve(_deployment: object, *, is_quiet: bool) -> None:
        seen.append(os.environ.get(name))

    monkeypatch.setattr("disagg.cluster.serve.serve", serve)
    monkeypatch.setenv(name, "a-secret-0123456789")
    result = CliRunner().invoke(app, ["serve", "simulated", "--quiet"])
    assert (result.exit_code, seen) == (0, [None]), result.output
