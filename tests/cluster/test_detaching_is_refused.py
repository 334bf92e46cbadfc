"""What would end with its controller, or with its Ray, is not detached: told before anything is started."""

from __future__ import annotations

from typing import Any

import pytest
from changing import configured

from disagg.cluster.detached.command import serve_detached
from disagg.errors import ConfigError, StartError

FILE = {"kind": "file", "path": "/nowhere"}


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def started(*_: object, **__: object) -> None:
        raise AssertionError("something was started")

    monkeypatch.setattr("disagg.cluster.detached.command.ray_and_janitor", started)


async def test_a_registry_in_the_controllers_memory() -> None:
    with pytest.raises(ConfigError) as refused:
        await serve_detached(configured(ray={"address": "10.0.0.1:6379"}))
    (problem,) = refused.value.problems
    assert problem.path == "registry.kind"
    assert "say kind: file or etcd" in str(problem)


@pytest.mark.parametrize("ray", [{"address": "local"}, {"address": "auto", "cpus": 2}])
async def test_a_private_ray(ray: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("disagg.cluster.ray_address.runs_here", lambda: [])
    with pytest.raises(StartError, match="`ray start --head`"):
        await serve_detached(configured(ray=ray, registry=FILE))
