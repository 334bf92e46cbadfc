"""`disagg list`: what a registry in a folder knows, and what it says where there is none."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import click
import pytest
from click.testing import Result
from typer.testing import CliRunner

from disagg.cli.app import app
from disagg.errors import ConfigError, StartError
from disagg.registry.changes import Changes
from disagg.registry.file_store import FileStore
from disagg.registry.keys import Keys, encode
from disagg.registry.records import ControllerRecord, EngineRecord, FrontendRecord, State
from disagg.registry.store import StoreLost
from disagg.roles import Role


def run(*words: str) -> Result:
    done = CliRunner().invoke(app, ["list", *words])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two deployments in two namespaces."""

    async def fill() -> None:
        store = FileStore(tmp_path / "registry")
        for namespace, name in ("prod", "chat"), ("test", "chat"):
            keys = Keys(namespace, name, "owner/m")
            me = ControllerRecord(run="r", host="node-1", pid=7, is_whole=True)
            engine = EngineRecord(id="decode-0", role=Role.DECODE, state=State.READY, incarnation=2, node="10.0.0.1")
            frontend = FrontendRecord(number=0, url="http://10.0.0.1:8000/v1", pid=8)
            changes = Changes(records={engine.id: engine}, frontends={0: frontend})
            await store.write({keys.controller: encode(me), **keys.spelt(changes)})
        await store.close()

    asyncio.run(fill())
    return tmp_path / "registry"


def test_deployments_are_listed_by_namespace(folder: Path) -> None:
    said = run("--registry", f"file:{folder}").output
    assert [line for line in said.splitlines() if not line.startswith(" ")] == [
        "prod/chat  owner/m",
        "test/chat  owner/m",
    ]
    assert "  frontend 0     http://10.0.0.1:8000/v1\n" in said
    assert "  decode-0       ready, life 2 on 10.0.0.1\n" in said
    assert "  controller     node-1:7\n" in said


def test_as_json_and_by_a_configuration(folder: Path, tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(
        f"version: 1\nmodel: {{path: smollm2}}\nprefill: {{}}\ndecode: {{}}\nregistry: {{kind: file, path: {folder}}}\n"
    )
    found = json.loads(run(str(config), "--json").output)
    assert [(each["namespace"], each["deployment"], each["models"]) for each in found] == [
        ("prod", "chat", ["owner/m"]),
        ("test", "chat", ["owner/m"]),
    ]
    assert found[0]["engines"] == [
        {"id": "decode-0", "role": "decode", "state": "ready", "incarnation": 2, "node": "10.0.0.1"}
    ]


def test_what_it_says_where_there_is_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert run("--registry", f"file:{tmp_path / 'empty'}").output == "no deployment is there\n"
    with pytest.raises(StoreLost, match="cannot be used"):
        run("--registry", f"file:{tmp_path / 'not-there'}")
    with pytest.raises(StartError, match="say file:/FOLDER, or etcd:HOST:PORT"):
        run("--registry", "redis:a:1")
    with pytest.raises(ConfigError, match="in the deployment's own process"):
        run("local-cpu")
    with pytest.raises(click.UsageError, match="say --registry"):
        run()
