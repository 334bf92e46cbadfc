"""`disagg configs`, `--version`, the short options of `serve`, and what a shell completes."""

from __future__ import annotations

import importlib.metadata

import pytest
from typer.testing import CliRunner

from disagg.cli.app import app
from disagg.cli.configs import names_like
from disagg.config.find import find_config, shipped_names

run = CliRunner(env={"COLUMNS": "200"}).invoke


def test_each_one_that_ships_is_there_with_a_sentence() -> None:
    lines = run(app, ["configs"]).stdout.splitlines()
    assert [line.split()[0] + ".yaml" for line in lines] == shipped_names()
    assert all(len(line.split()) > 5 for line in lines)


def test_one_of_them_is_printed_as_it_is() -> None:
    assert run(app, ["configs", "local-cpu"]).stdout == find_config("local-cpu").read_text()


def test_a_shell_completes_names() -> None:
    assert names_like("local-cpu-a") == ["local-cpu-aggregated"]
    assert len(names_like("")) == len(shipped_names())


def test_versions() -> None:
    said = run(app, ["--version"])
    assert said.exit_code == 0
    versions = dict(line.split(" ", 1) for line in said.stdout.splitlines())
    assert versions["disagg"] == importlib.metadata.version("disagg")
    assert versions["ray"] == importlib.metadata.version("ray")
    assert set(versions) == {"disagg", "sglang", "ray", "nixl", "torch"}


def test_short_options_of_serve_stand_above_the_yaml_and_its_sets() -> None:
    short = ["--port", "8123", "--host", "::1", "--model", "tiny: a"]
    said = run(app, ["serve", "simulated", "--set", "frontend.port=1", *short, "--dry-run"]).stdout
    assert "frontend  http://[::1]:8123/v1" in said
    assert "model     tiny: a, served as tiny: a" in said


@pytest.mark.parametrize(
    ("settings", "warns"),
    [
        (["frontend.host=0.0.0.0"], True),
        (["frontend.host=0.0.0.0", "security.admin_keys=[admin-key-0123456789]"], True),
        (["frontend.host=0.0.0.0", "security.api_keys=[first-key-0123456789]"], False),
        (["frontend.host=127.0.0.2"], False),
    ],
)
def test_a_frontend_that_is_open_to_others_without_keys_is_a_warning(settings: list[str], warns: bool) -> None:
    sets = [word for each in settings for word in ("--set", each)]
    said = run(app, ["check", "simulated", *sets]).stdout
    assert said.count("there are no keys") == warns
