"""Which Ray cluster a deployment uses, and what is said when that is none."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray._private import parameter, ray_constants

from disagg.cluster import ray_address, ray_cluster
from disagg.cluster.ray_address import Here, Meant, meant
from disagg.errors import StartError

ME, OTHER = os.getuid(), os.getuid() + 1


@pytest.fixture(autouse=True)
def nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray_address, "runs_here", list)


def runs(monkeypatch: pytest.MonkeyPatch, *here: Here) -> None:
    monkeypatch.setattr(ray_address, "runs_here", lambda: list(here))


def test_auto_is_private_where_nothing_runs() -> None:
    assert meant("auto", {}).address == ""


def test_auto_joins_the_one_cluster_of_this_user(monkeypatch: pytest.MonkeyPatch) -> None:
    runs(monkeypatch, Here("10.0.0.1:6379", ME, False))
    assert meant("auto", {}).address == "10.0.0.1:6379"


def test_auto_joins_no_other_deployment_s_private_ray_and_no_other_user_s(monkeypatch: pytest.MonkeyPatch) -> None:
    runs(monkeypatch, Here("127.0.0.1:1", ME, True), Here("10.0.0.1:6379", OTHER, False))
    assert meant("auto", {}).address == ""
    assert len(ray_address.others_here()) == 1
    assert "10.0.0.1:6379 of " in ray_address.others_here()[0]


def test_auto_asks_which_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    runs(monkeypatch, Here("10.0.0.1:6379", ME, False), Here("10.0.0.1:6380", ME, False))
    with pytest.raises(
        StartError, match=r"2 Ray clusters run on this machine: 10.0.0.1:6379, 10.0.0.1:6380; say which"
    ):
        meant("auto", {})


@pytest.mark.parametrize(("said", "expected"), [("h:6379", "h:6379"), ("local", ""), ("auto", ""), ("", ""), (" ", "")])
def test_ray_address_is_heeded_by_auto_alone(said: str, expected: str) -> None:
    assert meant("auto", {"RAY_ADDRESS": said}).address == expected
    assert meant("local", {"RAY_ADDRESS": said}).address == ""
    assert meant("x:1", {"RAY_ADDRESS": said}).address == "x:1"


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("ray://h:10001", "Ray Client is not supported; unset RAY_ADDRESS"),
        ("http://127.0.0.1:8265", "dashboard's address, which takes jobs"),
        ("https://h", "dashboard's address, which takes jobs"),
        ("h", "no HOST:PORT; unset RAY_ADDRESS"),
        ("h:99999", "no HOST:PORT"),
        ("h:0", "no HOST:PORT"),
        ("redis://h:6379", "no HOST:PORT"),
    ],
)
def test_what_ray_address_cannot_say_is_told_by_name_and_value(said: str, why: str) -> None:
    with pytest.raises(StartError) as told:
        meant("auto", {"RAY_ADDRESS": said})
    assert str(told.value).startswith(f"RAY_ADDRESS={said}: ")
    assert why in str(told.value)


def test_a_raylet_says_whose_and_how_private_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    raylets = [
        ["/x/raylet", "--gcs-address=10.0.0.1:6379", "--temp_dir=/tmp/ray"],
        ["/x/raylet", "--gcs-address=127.0.0.1:4", f"--temp_dir=/tmp/{ray_address.PRIVATE_PREFIX}ab12/r"],
        ["/x/raylet", "--gcs-address="],
        ["grep", "raylet", "--gcs-address=10.0.0.1:1"],
        [],
    ]

    class Process:
        def __init__(self, command: list[str]) -> None:
            self.info, self.pid = {"cmdline": command, "uids": os_uids(ME)}, os.getpid()

    monkeypatch.setattr(ray_address.psutil, "process_iter", lambda _fields: map(Process, raylets))
    assert ray_address.runs_here() == [Here("10.0.0.1:6379", ME, False), Here("127.0.0.1:4", ME, True)]


class os_uids:
    def __init__(self, uid: int) -> None:
        self.real = uid


# Nothing, or something else, answers.


@contextlib.contextmanager
def listener(answer: bytes | None) -> Iterator[int]:
    """Says `answer` to whoever has said something; None: nothing at all."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        held: list[socket.socket] = []

        def run() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    held.append(connection)
                    connection.recv(100)
                    if answer is not None:
                        connection.sendall(answer)

        threading.Thread(target=run, daemon=True).start()
        yield server.getsockname()[1]
        for each in held:
            each.close()


def refused(port: int, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(ray_address, "ANSWER_S", 0.3)
    with pytest.raises(StartError) as told:
        ray_address.refuse_a_silent_one(Meant(f"h:{port}", f"RAY_ADDRESS=h:{port}"), f"127.0.0.1:{port}")
    return str(told.value)


def test_a_stale_address_is_told_in_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    said = refused(port, monkeypatch)
    assert said.startswith(f"RAY_ADDRESS=h:{port}: no Ray cluster answers at 127.0.0.1:{port}: Connection refused; ")
    assert said.endswith("or unset RAY_ADDRESS")


def test_one_that_never_answers_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with listener(None) as port:
        assert "nothing answers" in refused(port, monkeypatch)


def test_something_else_that_answers_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with listener(b"HTTP/1.1 400 Bad Request\r\n\r\n") as port:
        assert "is no Ray cluster's GCS" in refused(port, monkeypatch)
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    monkeypatch.setattr(http.server.BaseHTTPRequestHandler, "log_message", lambda *_said: None)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    assert "is no Ray cluster's GCS" in refused(server.server_port, monkeypatch)
    server.shutdown()
    server.server_close()


def test_what_speaks_http2_is_let_through() -> None:
    with listener(bytes(3) + b"\x04" + bytes(5)) as port:
        ray_address.refuse_a_silent_one(Meant("h", "x"), f"127.0.0.1:{port}")


def test_a_name_that_nobody_knows_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "no-such-host.invalid:6379"
    with pytest.raises(StartError, match=r"RAY_ADDRESS=no-such-host.invalid:6379: no Ray cluster answers"):
        ray_address.refuse_a_silent_one(Meant(said, f"RAY_ADDRESS={said}"), said)


def test_a_command_that_starts_no_ray_says_that_none_runs() -> None:
    with pytest.raises(StartError, match=r"no Ray cluster of yours runs on this machine; start one"):
        ray_cluster.connect("auto", "", None, None, "")


# A private one's folder.


def test_a_private_folder_is_for_its_user_alone() -> None:
    folder = ray_cluster.private_folder("auto")
    assert os.stat(folder).st_mode & 0o777 == 0o700
    os.rmdir(folder)


def test_a_temporary_folder_with_too_long_a_name_is_told(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path_factory.mktemp("x" * 60)
    monkeypatch.setattr("tempfile.tempdir", str(long))
    with pytest.raises(StartError, match=rf"TMPDIR={long}: Ray's sockets there would have names of \d+ bytes"):
        ray_cluster.private_folder("local")
    assert list(long.iterdir()) == []


# What Ray is told.


@pytest.fixture
def init(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """What ray.init was called with, and the environment at that moment; it starts nothing."""
    seen: dict[str, object] = {}
    monkeypatch.setattr(os, "environ", dict(os.environ))

    def record(**said: object) -> None:
        seen.update(said, environment=dict(os.environ), on_loopback=not ray_constants.ENABLE_RAY_CLUSTER)
        seen["agent_port"] = parameter.RayParams().dashboard_agent_listen_port

    monkeypatch.setattr(ray_cluster.ray, "init", record)
    monkeypatch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", True)
    return seen


def test_ray_is_not_asked_where_nobody_answers(monkeypatch: pytest.MonkeyPatch, init: dict[str, object]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        said = f"127.0.0.1:{gone.getsockname()[1]}"
    monkeypatch.setenv("RAY_ADDRESS", said)
    with pytest.raises(StartError, match=rf"RAY_ADDRESS={said}: no Ray cluster answers at .*unset RAY_ADDRESS"):
        ray_cluster.connect("auto", "", None, None, "")
    assert init == {}


def test_a_private_ray_is_started_without_what_leads_to_others(tmp_path: Path, init: dict[str, object]) -> None:
    usual = parameter.RayParams
    for name in ray_cluster._NOT_OF_A_PRIVATE_ONE:
        os.environ[name] = "of another cluster"
    ray_cluster.connect("local", str(tmp_path), 2, None, "d1")
    environment = init["environment"]
    assert isinstance(environment, dict)
    assert [name for name, value in environment.items() if value == "of another cluster"] == []
    token = Path(environment["RAY_AUTH_TOKEN_PATH"])
    assert (token.parent, token.stat().st_mode & 0o777, len(token.read_text())) == (tmp_path, 0o600, 64)
    assert environment["PYTHONSAFEPATH"] == "1"
    assert (init["address"], init["_temp_dir"], init["on_loopback"]) == ("local", str(tmp_path / "r"), True)
    assert init["agent_port"] == 0, "a fixed port would be another cluster's"
    assert parameter.RayParams is usual


def test_ray_s_workers_do_not_import_from_the_folder_of_a_start_or_of_a_job(
    monkeypatch: pytest.MonkeyPatch, init: dict[str, object]
) -> None:
    job = {"runtime_env": {"working_dir": "gcs://x.zip", "env_vars": {"A": "1"}}, "metadata": {"job": "7"}}
    os.environ["RAY_JOB_CONFIG_JSON_ENV_VAR"] = json.dumps(job)
    with listener(bytes(3) + b"\x04" + bytes(5)) as port:
        monkeypatch.setattr(ray_cluster, "_where_ray_goes", lambda _at: f"127.0.0.1:{port}")
        ray_cluster.connect(f"127.0.0.1:{port}", "", None, None, "")
    assert init["on_loopback"] is False
    assert getattr(init["job_config"], "_client_job") is True  # noqa: B009 - what keeps Ray from adding the folder
    environment = init["environment"]
    assert isinstance(environment, dict)
    left = json.loads(environment["RAY_JOB_CONFIG_JSON_ENV_VAR"])
    assert left == {"runtime_env": {"env_vars": {"A": "1"}}, "metadata": {"job": "7"}}


@pytest.mark.parametrize("said", ["{", "[]", '{"runtime_env": 3}'])
def test_a_job_s_configuration_that_is_none_is_told(
    said: str, monkeypatch: pytest.MonkeyPatch, init: dict[str, object]
) -> None:
    os.environ["RAY_JOB_CONFIG_JSON_ENV_VAR"] = said
    monkeypatch.setattr(ray_address, "refuse_a_silent_one", lambda *_said: None)
    with pytest.raises(StartError, match=r"RAY_JOB_CONFIG_JSON_ENV_VAR: is no job's configuration; unset it"):
        ray_cluster.connect("10.0.0.1:6379", "", None, None, "")
    assert init == {}


@pytest.mark.skipif(os.getuid() != 0, reason="only root makes networks")
def test_a_raylet_in_a_network_of_its_own_is_not_here() -> None:
    """A container's, or another test's: `auto` joined it, and waited for an address that leads nowhere."""
    with subprocess.Popen(["unshare", "--net", "sh", "-c", "echo up; exec sleep 60"], stdout=subprocess.PIPE) as apart:
        assert apart.stdout is not None
        assert apart.stdout.readline() == b"up\n"
        assert not ray_address._is_in_our_network(apart.pid)
        assert ray_address._is_in_our_network(os.getpid())
        apart.kill()
