"""Two deployments on one machine, and one of another user: each has a Ray of its own, and its end is its own."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import psutil
import pytest
from deployment import Deployment, end, launch

from disagg.cluster import ray_address
from disagg.models.catalogue import model_folder

pytestmark = pytest.mark.alone

NOBODY = 65534
# The interpreter may lie where only root looks; beyond reading, this is nobody.
AS_NOBODY = (
    *("setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups"),
    *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"),
)
READY_S = 240.0  # three on two busy cores
ASK = {"model": "smollm2", "prompt": [5, 6, 7], "max_tokens": 4, "ignore_eos": True, "return_token_ids": True}


class Three(NamedTuple):
    first: Deployment
    second: Deployment
    of_nobody: Deployment
    homes: list[Path]


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Three]:
    if os.getuid() != 0:
        pytest.skip("only root can be two users")
    started: list[Deployment] = []
    homes: list[Path] = []

    def start(uid: int, *prefix: str) -> Deployment:
        home = Path("/tmp") / f"disagg-home-{os.getpid()}-{len(homes)}"
        home.mkdir()
        os.chown(home, uid, uid)
        homes.append(home)
        environment = {
            "HOME": str(home),
            "DISAGG_CACHE": str(home / "cache"),
            "RAY_TMPDIR": "/nowhere",
            "RAY_REDIS_ADDRESS": "127.0.0.1:9",
        }
        path = f"model.path={model_folder('smollm2')}"
        started.append(
            launch("configs/simulated.yaml", path, "model.name=smollm2", environment=environment, prefix=prefix)
        )
        return started[-1]

    try:
        first = start(0)
        wait_until_ready(first)  # the others meet a Ray that runs
        three = Three(first, start(0), start(NOBODY, *AS_NOBODY), homes)
        wait_until_ready(three.second, three.of_nobody)
        yield three
    finally:
        for each in started:
            if each.process.poll() is None:
                end(each)
        subprocess.run(["rm", "-rf", *map(str, homes)], check=True)


def wait_until_ready(*deployments: Deployment) -> None:
    until = time.monotonic() + READY_S
    for each in deployments:
        while not (each.is_ready() and each.all_ready()):
            assert each.process.poll() is None, f"it ended:\n{each.said()}"
            assert time.monotonic() < until, f"not ready:\n{each.said()}"
            time.sleep(0.2)


def answers(deployment: Deployment) -> bool:
    said = httpx.post(f"{deployment.url}/v1/completions", json=ASK, timeout=60, trust_env=False)
    return said.status_code == 200 and said.json()["usage"]["completion_tokens"] == 4


def raylet_of(deployment: Deployment) -> psutil.Process:
    (raylet,) = [process for process in deployment.processes() if process.name() == "raylet"]
    return raylet


def folder_of(deployment: Deployment) -> Path:
    """Of its private Ray."""
    said = next(word for word in raylet_of(deployment).cmdline() if word.startswith("--temp_dir="))
    return Path(said.partition("=")[2]).parent


def test_each_has_a_ray_of_its_own(three: Three) -> None:
    raylets = [raylet_of(deployment) for deployment in three[:3]]
    assert [raylet.uids().real for raylet in raylets] == [0, 0, NOBODY]
    rays = {ray for ray in ray_address.runs_here() if ray.is_private}
    assert len({ray.address for ray in rays}) == len(rays) >= 3


def test_nothing_is_written_into_a_home_but_the_cache(three: Three) -> None:
    for home in three.homes:
        assert [each.name for each in home.iterdir()] == ["cache"]


def test_no_secret_is_in_a_command_or_open_to_other_users(three: Three) -> None:
    frontend = next(each for each in three.first.processes() if "disagg.frontend.main" in each.cmdline())
    token = folder_of(three.first) / "auth_token"
    secrets = [frontend.environ()["DISAGG_PLANE_SECRET"], token.read_text()]
    assert all(secrets)
    assert token.stat().st_mode & 0o777 == 0o600
    assert token.parent.stat().st_mode & 0o777 == 0o700
    commands = "\n".join(" ".join(each.info["cmdline"] or ()) for each in psutil.process_iter(["cmdline"]))
    assert not [secret for secret in secrets if secret in commands]


def test_one_s_end_leaves_the_others_serving(three: Three) -> None:
    assert all(map(answers, three[:3]))
    assert end(three.first) == 0
    assert answers(three.second)
    assert answers(three.of_nobody)
    raylet, folder = raylet_of(three.second), folder_of(three.second)
    three.second.process.kill()  # its janitor ends the rest of it
    three.second.process.wait(60)
    until = time.monotonic() + 60
    while raylet.is_running() or folder.exists():
        assert time.monotonic() < until
        time.sleep(0.2)
    assert answers(three.of_nobody)
    assert end(three.of_nobody) == 0
