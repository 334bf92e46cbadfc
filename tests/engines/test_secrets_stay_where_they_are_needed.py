"""Keys, passwords and the plane's secret of a deployment that runs: in no command line, log, report, status, nor in the
environment of a process that has no use for them; and no file of it is for other users."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from deployment import READY_S, Deployment, end, launch
from listeners import kind_of, open_in, told
from streams import wait_until

from disagg.folders import log_folder, run_folder

# By the variable of the environment that the configuration takes each from.
KEYS = {
    "GUARD_API_KEY": "api-key-0123456789abcdef",
    "GUARD_TEAM_KEY": "team-key-0123456789abcdef",
    "GUARD_ADMIN_KEY": "admin-key-0123456789abcdef",
    "GUARD_TRACES_TOKEN": "traces-token-0123456789abcdef",
}
SETS = (
    "ray.address=local",
    "frontend.count=2",
    'security.api_keys=["${env:GUARD_API_KEY}", {key: "${env:GUARD_TEAM_KEY}", name: team, concurrent: 9}]',
    'security.admin_keys=["${env:GUARD_ADMIN_KEY}"]',
    'telemetry.traces={endpoint: "http://127.0.0.1:9", headers: {authorization: "Bearer ${env:GUARD_TRACES_TOKEN}"}}',
)
ADMIN = {"authorization": f"Bearer {KEYS['GUARD_ADMIN_KEY']}"}
OF_A_FILE, ANOTHER = "file-key-0123456789abcdef", "another-key-0123456789abcdef"
OWN_KEY = "operators-own-0123456789abcdef"  # of the shell where it was started: another deployment's


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _with_key(tmp_path_factory.mktemp("keys") / "keys.yaml", OF_A_FILE)


def _with_key(path: Path, key: str) -> Path:
    path.touch(0o600)
    path.write_text(f"api_keys: [{key}]\n")
    return path


@pytest.fixture(scope="module")
def guarded(key_file: Path) -> Iterator[Deployment]:
    environment = KEYS | {"DISAGG_API_KEY": OWN_KEY}
    deployment = launch("configs/simulated.yaml", *SETS, f"security.keys_file={key_file}", environment=environment)
    try:
        wait_until(lambda: deployment.is_ready() and "serving smollm2" in deployment.log.read_text(), READY_S)
        body = {"model": "smollm2", "prompt": [5, 6, 7], "max_tokens": 3}
        answer = httpx.post(f"{deployment.url}/v1/completions", json=body, headers=ADMIN, trust_env=False)
        assert answer.status_code == 200
        refused = {"authorization": "Bearer a-wrong-key-0123456789"}
        assert httpx.get(f"{deployment.url}/v1/models", headers=refused, trust_env=False).status_code == 401
        yield deployment
    finally:
        end(deployment)


@pytest.fixture(scope="module")
def secrets(guarded: Deployment) -> dict[str, bytes]:
    frontend = next(each for each in guarded.processes() if kind_of(each) == "frontend")
    plane = frontend.environ()["DISAGG_PLANE_SECRET"]
    return {name: key.encode() for name, key in {**KEYS, "plane": plane, "own": OWN_KEY, "file": OF_A_FILE}.items()}


def found_in(data: bytes, secrets: dict[str, bytes]) -> list[str]:
    return [name for name, secret in secrets.items() if secret in data]


def test_no_command_line_has_one(guarded: Deployment, secrets: dict[str, bytes]) -> None:
    """Of any process of this machine."""
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            assert found_in(file.read_bytes(), secrets) == [], file
        except OSError:  # it has ended
            continue


def test_who_needs_none_has_none_in_its_environment(guarded: Deployment, secrets: dict[str, bytes]) -> None:
    """The driver reads keys from its own; it hands them to frontends on their standard input."""
    seen: dict[str, set[str]] = {}
    for process in guarded.processes():
        try:
            data = Path(f"/proc/{process.pid}/environ").read_bytes()
            seen.setdefault(kind_of(process), set()).update(found_in(data, secrets))
        except (OSError, psutil.Error):
            continue
    assert {"Ray", "frontend", "disagg serve"} <= seen.keys()
    # An engine's reaper and host are spawned with the plane's: the host takes it out of what it starts itself.
    allowed = {"disagg serve": {*KEYS, "own"}, "frontend": {"plane"}, "engine host": {"plane"}}
    for who, names in seen.items():
        if not who.startswith("unknown") or "reaper" not in who:
            assert names <= allowed.get(who, set()), who


def test_no_file_or_answer_has_one_or_is_open_to_others(
    guarded: Deployment, secrets: dict[str, bytes], tmp_path: Path
) -> None:
    (raylet,) = [each for each in guarded.processes() if each.name() == "raylet"]
    ray = Path(next(word for word in raylet.cmdline() if word.startswith("--temp_dir=")).partition("=")[2]).parent
    folders = [ray, run_folder(guarded.name), log_folder(guarded.name)]
    assert [oct(folder.stat().st_mode & 0o777) for folder in folders] == ["0o700"] * 3
    files = [guarded.log, *(each for folder in folders for each in folder.rglob("*") if each.is_file())]
    assert len(files) > 5, "the probe sees nothing"
    for file in files:
        assert found_in(file.read_bytes(), secrets) == [], file
    for path in ("/disagg/status", "/disagg/loads", "/metrics", "/disagg/revisions?show=1", "/server_info"):
        answer = httpx.get(guarded.url + path, headers=ADMIN, trust_env=False, timeout=15)
        assert (answer.status_code, found_in(answer.content, secrets)) == (200, []), path
    said = _disagg(guarded, "status", "--json")
    assert '"engines"' in said
    assert found_in(said.encode(), secrets) == []


def test_a_report_has_none(guarded: Deployment, secrets: dict[str, bytes], tmp_path: Path) -> None:
    archive = tmp_path / "report.tar.gz"
    sets = [word for each in SETS for word in ("--set", each)]
    _disagg(guarded, "report", str(archive), "--config", "configs/simulated.yaml", *sets)
    with tarfile.open(archive) as report:
        names = {Path(each.name).name for each in report}
        assert {"configuration.json", "status.json", "metrics.txt", "decode-0.txt"} <= names
        for each in report:
            file = report.extractfile(each)
            assert file is not None
            assert found_in(file.read(), secrets) == [], each.name


def _disagg(deployment: Deployment, *words: str) -> str:
    environment = os.environ | KEYS | {"DISAGG_URL": deployment.url, "DISAGG_API_KEY": KEYS["GUARD_ADMIN_KEY"]}
    command = [sys.executable, "-m", "disagg.cli.main", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_listens_is_in_the_table(guarded: Deployment) -> None:
    """docs/security.md, Ports: with two frontends, which ask each other."""
    found = open_in(guarded.processes(), int(guarded.url.rpartition(":")[2]))
    assert ("frontend", "any free") in {(each.who, each.port) for each in found}
    assert [each for each in found if not told(each)] == []
    assert [each for each in found if not each.path and each.address not in ("127.0.0.1", "::1")] == []


def test_a_key_of_the_file_opens_until_it_is_taken_out(guarded: Deployment, key_file: Path) -> None:
    def opened(key: str) -> set[int]:
        """On either frontend, by connections of their own."""
        headers = {"authorization": f"Bearer {key}"}
        ask = [httpx.get(f"{guarded.url}/v1/models", headers=headers, trust_env=False) for _ in range(12)]
        return {answer.status_code for answer in ask}

    assert (opened(OF_A_FILE), opened(ANOTHER)) == ({200}, {401})
    _with_key(key_file, ANOTHER)
    wait_until(lambda: (opened(OF_A_FILE), opened(ANOTHER)) == ({401}, {200}), 60)
