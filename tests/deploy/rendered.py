"""`disagg deploy` as a user calls it, in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from typer.testing import CliRunner

from disagg.cli.deploy import app
from disagg.errors import ConfigError

THIRTEEN_NODES = """
version: 1
device: cuda
model: {path: /models/big}
prefill: {nodes: 4, engine: {tp_size: 32, dp_size: 32, enable_dp_attention: true, page_size: 64}}
decode: {nodes: 9, engine: {tp_size: 72, dp_size: 72, enable_dp_attention: true, page_size: 64}}
"""


def thirteen_nodes(folder: Path) -> Path:
    """A prefill engine over 4 nodes and a decode engine over 9, of 8 GPUs each."""
    path = folder / "thirteen.yaml"
    path.write_text(THIRTEEN_NODES)
    return path


def deploy(*words: object) -> str:
    """What it prints."""
    done = CliRunner().invoke(app, [str(word) for word in words])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


def refused(*words: object) -> dict[str, str]:
    """Every problem: path -> what is wrong and what would do."""
    try:
        deploy(*words)
    except ConfigError as error:
        return {problem.path: f"{problem.what}; {problem.would_do}" for problem in error.problems}
    raise AssertionError("it was not refused")


def documents(text: str) -> dict[str, dict[str, Any]]:
    """kind -> manifest."""
    return {tree["kind"]: tree for tree in yaml.safe_load_all(text)}
