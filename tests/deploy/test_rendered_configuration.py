"""What is rendered means on another machine what it means on the one that renders."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from rendered import deploy, documents, refused

from disagg.config.find import shipped_names
from disagg.config.schema import Deployment
from disagg.load import load_config

BASE = "version: 1\ndevice: cpu\nmodel: {path: smollm2}\nprefill: {}\ndecode: {}\n"


def in_pod(folder: Path, *words: Any) -> Deployment:
    """As a pod reads it: another folder, another file name, none of the submitter's variables."""
    found = documents(deploy("k8s", *words))
    folder.mkdir()
    (folder / "config.yaml").write_text(found["ConfigMap"]["data"]["config.yaml"])
    command = shlex.split(found["RayJob"]["spec"]["entrypoint"])
    return load_config(folder / "config.yaml", command[4::2])


def test_what_a_file_extends_comes_with_it(tmp_path: Path) -> None:
    (tmp_path / "base2.yaml").write_text(BASE + "routing: {queue_max: 7}\n")
    (tmp_path / "child.yaml").write_text("extends: base2.yaml\nrouting: {retry_limit: 1}\n")
    routing = in_pod(tmp_path / "pod", tmp_path / "child.yaml", "--set", "routing.migration_limit=2").routing
    assert (routing.queue_max, routing.retry_limit, routing.migration_limit) == (7, 1, 2)
    script = deploy("slurm", tmp_path / "child.yaml")
    assert "queue_max: 7" in script
    assert "extends" not in script


def test_the_environment_is_that_of_who_renders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.yaml").write_text(BASE + "routing: {queue_max: '${env:WAITING}'}\n")
    monkeypatch.setenv("WAITING", "7")
    monkeypatch.setenv("TRIES", "2")
    with monkeypatch.context() as at_hand:
        words = (tmp_path / "a.yaml", "--set", "routing.retry_limit=${env:TRIES}")
        rendered = deploy("slurm", *words)
        assert "${env:" not in rendered
        found = documents(deploy("k8s", *words))
        at_hand.delenv("WAITING")
        at_hand.delenv("TRIES")
        (tmp_path / "config.yaml").write_text(found["ConfigMap"]["data"]["config.yaml"])
        sets = shlex.split(found["RayJob"]["spec"]["entrypoint"])[4::2]
        routing = load_config(tmp_path / "config.yaml", sets).routing
    assert (routing.queue_max, routing.retry_limit) == (7, 2)


def test_what_needs_nothing_of_this_machine_keeps_its_comments(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("# mind the gap\n" + BASE)
    assert "# mind the gap" in deploy("slurm", tmp_path / "a.yaml", "--set", "frontend.port=9000")


@pytest.mark.parametrize("config", ["local-cpu", shipped_names()[0]])
def test_a_deployment_keeps_its_name_whatever_its_file_is_called_there(config: str, tmp_path: Path) -> None:
    assert in_pod(tmp_path / "pod", config).name == config.removesuffix(".yaml")


def test_the_name_and_the_namespace_of_the_yaml_are_those_on_the_scheduler(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(BASE + "name: 9lives\nnamespace: serving\n")
    metadata = documents(deploy("k8s", tmp_path / "a.yaml"))["RayJob"]["metadata"]
    assert (metadata["name"], metadata["namespace"]) == ("disagg-9lives", "serving")
    said = documents(deploy("k8s", tmp_path / "a.yaml", "--name", "mine", "--namespace", "other"))["RayJob"]["metadata"]
    assert (said["name"], said["namespace"]) == ("mine", "other")
    assert in_pod(tmp_path / "pod", tmp_path / "a.yaml", "--name", "mine").name == "9lives"
    (name,) = re.findall(r"--job-name=(.*)", deploy("slurm", tmp_path / "a.yaml"))
    assert name == "disagg-9lives"
    assert "namespace" not in documents(deploy("k8s", "local-cpu"))["RayJob"]["metadata"]


@pytest.mark.parametrize(("drain_s", "stop_s", "limit_s"), [(30, 10, 90), (600, 60.5, 711)])
def test_there_is_time_to_drain_and_to_stop_before_it_is_killed(drain_s: float, stop_s: float, limit_s: int) -> None:
    sets = ("--set", f"deadlines.drain_s={drain_s}", "--set", f"deadlines.stop_s={stop_s}")
    found = documents(deploy("k8s", "local-cpu", *sets))
    cluster = found["RayJob"]["spec"]["rayClusterSpec"]
    assert cluster["headGroupSpec"]["template"]["spec"]["terminationGracePeriodSeconds"] == limit_s
    (application,) = yaml.safe_load(found["RayService"]["spec"]["serveConfigV2"])["applications"]
    assert application["args"]["stop_s"] == limit_s
    assert f"#SBATCH --signal=B:TERM@{limit_s + 30}\n" in deploy("slurm", "local-cpu", *sets)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("security.api_keys", "[a-secret-key-0123456789]"),
        ("security.admin_keys", "[a-secret-key-0123456789]"),
        ("security.secret", "a-secret-key-0123456789" * 2),
        ("telemetry.traces", "{endpoint: 'http://collector:4318', headers: {x-key: a-secret-key-0123456789}}"),
        ("registry", "{kind: etcd, endpoints: [etcd:2379], user: disagg, password: a-secret-key-0123456789}"),
    ],
)
def test_keys_are_not_rendered_where_others_read_them(name: str, value: str) -> None:
    found = refused("slurm", "two-gpus", "--set", f"{name}={value}")
    ((path, message),) = found.items()
    assert path.startswith(name)
    assert "a-secret-key" not in message
