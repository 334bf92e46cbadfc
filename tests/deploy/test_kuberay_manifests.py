"""The manifests of `disagg deploy k8s` against KubeRay's own schemas, and what they have to say beyond those."""

from __future__ import annotations

import copy
import gzip
import json
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from rendered import deploy, documents, refused, thirteen_nodes

from disagg.config.find import shipped_names
from disagg.load import parse_config

EVERYTHING = [
    "--image=registry.example/disagg:1",
    "--namespace=serving",
    "--rdma=rdma/hca:8",
    "--host-network",
    "--model-pvc=models",
    "--memory-gib=1024",
    "--shm-gib=128",
    "--auth-secret=ray-token",
    "--keys-secret=chat-keys",
]


def strict(schema: Any) -> Any:
    """As `kubectl apply --validate=strict` takes it: a key that the schema lacks is an error, not dropped."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: strict(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        closed.setdefault("additionalProperties", False)
    return closed


@pytest.fixture(scope="module")
def validators() -> dict[str, jsonschema.protocols.Validator]:
    raw = gzip.decompress((Path(__file__).parent / "kuberay" / "schemas.json.gz").read_bytes())
    found = {}
    for kind, schema in json.loads(raw).items():
        schema["properties"]["metadata"]["x-kubernetes-preserve-unknown-fields"] = True  # ObjectMeta, not in the CRD
        found[kind] = jsonschema.Draft202012Validator(strict(schema))
    return found


def errors(validators: dict[str, Any], manifest: dict[str, Any]) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in validators[manifest["kind"]].iter_errors(manifest)]


@pytest.mark.parametrize("options", [[], EVERYTHING], ids=["as it is", "every option"])
@pytest.mark.parametrize("config", ["local-cpu", "two-gpus", "one-gpu", "thirteen nodes"])
def test_manifests_are_valid(config: str, options: list[str], validators: dict[str, Any], tmp_path: Path) -> None:
    named = thirteen_nodes(tmp_path) if config == "thirteen nodes" else config
    found = documents(deploy("k8s", named, *options))
    assert set(found) == {"ConfigMap", "Service", "RayJob", "RayService"}
    assert errors(validators, found["RayJob"]) == []
    assert errors(validators, found["RayService"]) == []


def test_every_shipped_configuration_renders(validators: dict[str, Any]) -> None:
    for name in shipped_names():
        found = documents(deploy("k8s", name, "--kind", "rayjob"))
        assert errors(validators, found["RayJob"]) == [], name


def broken(path: str, value: Any) -> dict[str, Any]:
    job = copy.deepcopy(documents(deploy("k8s", "two-gpus"))["RayJob"])
    at: Any = job
    *way, last = (int(part) if part.isdigit() else part for part in path.split("."))
    for part in way:
        at = at[part]
    if value is None:
        del at[last]
    else:
        at[last] = value
    return dict(job)


CLUSTER = "spec.rayClusterSpec"
POD = f"{CLUSTER}.workerGroupSpecs.0.template.spec"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec.entrypont", "disagg serve"),
        ("spec.backoffLimit", "two"),
        (f"{CLUSTER}.authOptions.mode", "secret"),
        (f"{CLUSTER}.headGroupSpec", None),
        (f"{CLUSTER}.workerGroupSpecs.0.groupName", None),
        (f"{CLUSTER}.workerGroupSpecs.0.rayStartParams.num-gpus", 2),
        (f"{POD}.volumes.1.emptyDir.sizeLimit", [64]),
        (f"{POD}.containers.0.securityContext.capabilities.add", "IPC_LOCK"),
        (f"{POD}.containers.0.readinessProbe.httpGet.port", None),
    ],
)
def test_a_broken_manifest_is_told_from_a_valid_one(path: str, value: Any, validators: dict[str, Any]) -> None:
    assert errors(validators, broken(path, value)) != []


def test_engines_get_the_nodes_of_their_shape(tmp_path: Path) -> None:
    found = documents(deploy("k8s", thirteen_nodes(tmp_path)))
    (group,) = found["RayJob"]["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (13, 13, 13)
    assert group["rayStartParams"]["num-gpus"] == "8"
    assert group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "8"


def test_no_engine_can_be_placed_on_the_head() -> None:
    for cluster in clusters("two-gpus"):
        assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
        assert cluster["headGroupSpec"]["rayStartParams"]["num-gpus"] == "0"


def test_shared_memory_memlock_rdma_and_host_network() -> None:
    for cluster in clusters("two-gpus", *EVERYTHING):
        spec = cluster["workerGroupSpecs"][0]["template"]["spec"]
        (container,) = spec["containers"]
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert volumes["shared-memory"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "128Gi"}
        assert mounts["shared-memory"] == "/dev/shm"
        assert container["securityContext"]["capabilities"]["add"] == ["IPC_LOCK"]
        assert container["resources"]["limits"]["rdma/hca"] == "8"
        assert (spec["hostNetwork"], spec["dnsPolicy"]) == (True, "ClusterFirstWithHostNet")
        assert {"name": "agent", "containerPort": 52365} in container["ports"], "one pod a host"
        assert "hostNetwork" not in cluster["headGroupSpec"]["template"]["spec"], "its ports would be an engine pod's"
        assert volumes["models"]["persistentVolumeClaim"]["claimName"] == mounts["models"].strip("/")
        assert cluster["authOptions"] == {"mode": "token", "secretName": "ray-token"}


def test_the_driver_and_every_engine_see_the_models() -> None:
    for cluster in clusters("two-gpus", "--model-host-path=/data/llm", "--model-mount=/llm"):
        for part in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            spec = part["template"]["spec"]
            assert {"name": "models", "hostPath": {"path": "/data/llm", "type": "Directory"}} in spec["volumes"]
            assert {"name": "models", "mountPath": "/llm"} in spec["containers"][0]["volumeMounts"]


def test_keys_are_a_file_of_the_head_pod_alone_and_no_manifest_has_one() -> None:
    job = documents(deploy("k8s", "local-cpu", "--keys-secret=chat-keys"))["RayJob"]["spec"]
    assert "security.keys_file=/etc/disagg-keys/keys.yaml" in job["entrypoint"]
    head, (engines,) = job["rayClusterSpec"]["headGroupSpec"], job["rayClusterSpec"]["workerGroupSpecs"]
    pod = head["template"]["spec"]
    (volume,) = [each for each in pod["volumes"] if each["name"] == "keys"]
    assert volume["secret"] == {"secretName": "chat-keys"}
    (mount,) = [each for each in pod["containers"][0]["volumeMounts"] if each["name"] == "keys"]
    assert mount == {"name": "keys", "mountPath": "/etc/disagg-keys", "readOnly": True}
    assert "keys" not in [each["name"] for each in engines["template"]["spec"]["volumes"]]
    assert "disagg-keys" not in deploy("k8s", "local-cpu")


def test_the_service_sends_to_the_pod_that_the_probe_finds_ready() -> None:
    found = documents(deploy("k8s", "two-gpus", "--set", "frontend.port=9123"))
    service = found["Service"]["spec"]
    head = found["RayJob"]["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]
    (container,) = head["spec"]["containers"]
    assert service["selector"].items() <= head["metadata"]["labels"].items()
    assert service["ports"] == [{"name": "http", "port": 9123, "targetPort": "http"}]
    assert {"name": "http", "containerPort": 9123} in container["ports"]
    assert container["readinessProbe"]["exec"]["command"][-3:] == ["disagg.deploy.probe", "--port", "9123"]
    workers = found["RayJob"]["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["metadata"]["labels"]
    assert not service["selector"].items() <= workers.items()


@pytest.mark.parametrize("kind", ["RayJob", "RayService"])
def test_what_is_started_serves_the_mounted_configuration_to_everybody(kind: str) -> None:
    found = documents(deploy("k8s", "two-gpus", "--set", "frontend.host=127.0.0.1", "--set", "model.name=a b"))
    spec = found[kind]["spec"]
    if kind == "RayJob":
        words, cluster = shlex.split(spec["entrypoint"]), spec["rayClusterSpec"]
    else:
        (application,) = yaml.safe_load(spec["serveConfigV2"])["applications"]
        words, cluster = application["args"]["command"], spec["rayClusterConfig"]
    assert words[:3] == ["disagg", "serve", "/etc/disagg/config.yaml"]
    deployment = parse_config(found["ConfigMap"]["data"]["config.yaml"], words[4::2])
    assert (deployment.frontend.host, deployment.ray.address, deployment.model.name) == ("0.0.0.0", "auto", "a b")
    head = cluster["headGroupSpec"]["template"]["spec"]
    assert {"name": "config", "mountPath": "/etc/disagg", "readOnly": True} in head["containers"][0]["volumeMounts"]
    assert {"name": "config", "configMap": {"name": "two-gpus-config"}} in head["volumes"]


def test_ray_serves_proxy_leaves_the_frontend_its_port() -> None:
    for port in (8000, 8099):
        spec = documents(deploy("k8s", "two-gpus", "--set", f"frontend.port={port}"))["RayService"]["spec"]
        proxy = yaml.safe_load(spec["serveConfigV2"])["http_options"]["port"]
        ports = spec["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"][0]["ports"]
        assert proxy != port
        assert {"name": "serve", "containerPort": proxy} in ports


def test_the_same_configuration_gives_the_same_bytes(tmp_path: Path) -> None:
    once = deploy("k8s", "two-gpus", *EVERYTHING)
    assert deploy("k8s", "two-gpus", *EVERYTHING) == once
    deploy("k8s", "two-gpus", *EVERYTHING, "-o", tmp_path / "made")
    files = {path.name: path.read_text() for path in (tmp_path / "made").iterdir()}
    assert set(files) == {"configmap.yaml", "service.yaml", "rayjob.yaml", "rayservice.yaml"}
    assert all(text in once for text in files.values())


def test_what_is_put_into_a_manifest_is_read_back_as_it_was(tmp_path: Path) -> None:
    config = "version: 1  \ndevice: cuda\n\n# größer\nmodel:\n  path: /models/a\naggregated: {}\n\n\n"
    path = tmp_path / "odd.yaml"
    path.write_text(config)
    odd = ["--namespace=123", "--model-host-path=/a: b #c", "--auth-secret=1e3", "--rdma=a.b/c:12"]
    found = documents(deploy("k8s", path, "--name=yes", *odd, "--set", 'model.name="a\\n {{b}}: c"'))
    assert found["ConfigMap"]["data"]["config.yaml"] == config
    job, service = found["RayJob"], found["RayService"]
    assert (job["metadata"]["name"], job["metadata"]["namespace"]) == ("yes", "123")
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["authOptions"]["secretName"] == "1e3"
    volumes = cluster["headGroupSpec"]["template"]["spec"]["volumes"]
    assert volumes[-1]["hostPath"]["path"] == "/a: b #c"
    command = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"][0]["args"]["command"]
    assert shlex.split(job["spec"]["entrypoint"]) == command
    assert parse_config(config, command[4::2]).model.name == "a\n {{b}}: c"


def test_every_mistake_is_told_at_once_and_nothing_is_written(tmp_path: Path) -> None:
    made = tmp_path / "made"
    bad = ["--image=Not An Image", "--kind=pod", "--rdma=hca", "--model-pvc=a", "--model-host-path=data", "--name=9"]
    found = refused("k8s", "two-gpus", *bad, "--ray-version=2.50", "--set", "frontend.port=x", "-o", made)
    assert set(found) == {
        "--image", "--kind", "--rdma", "--model-host-path", "--name", "--ray-version", "frontend.port",
    }  # fmt: skip
    assert not made.exists()


def test_an_engine_larger_than_a_node_is_refused(tmp_path: Path) -> None:
    assert "--gpus-per-node" in refused("k8s", thirteen_nodes(tmp_path), "--gpus-per-node", 4)["prefill"]


def test_device_auto_has_to_be_told_what_a_node_has(tmp_path: Path) -> None:
    path = tmp_path / "auto.yaml"
    path.write_text("version: 1\nmodel: {path: smollm2}\naggregated: {}\n")
    assert set(refused("k8s", path)) == {"--gpus-per-node"}
    job = documents(deploy("k8s", path, "--gpus-per-node", 0))["RayJob"]
    assert job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["rayStartParams"]["num-gpus"] == "0"


def clusters(*words: str) -> list[dict[str, Any]]:
    found = documents(deploy("k8s", *words))
    return [found["RayJob"]["spec"]["rayClusterSpec"], found["RayService"]["spec"]["rayClusterConfig"]]


@pytest.mark.parametrize("word", ["y", "n", "1e3", "12e4", "0o17"])
def test_a_name_that_another_reader_of_yaml_takes_for_something_else_is_in_quotes(word: str) -> None:
    """PyYAML reads them as text. KubeRay and kubectl read y as true and 1e3 as 1000, and refuse the manifest."""
    text = deploy("k8s", "local-cpu", f"--namespace={word}", f"--model-pvc={word}", f"--auth-secret={word}")
    assert text.count(f'namespace: "{word}"') == 4
    assert text.count(f'claimName: "{word}"') == 4
    assert text.count(f'secretName: "{word}"') == 2
    assert f": {word}\n" not in text


@pytest.mark.parametrize("end", ["", "\n", "\n\n", "\n\n\n", "\n...\n", "\n# é 'quoted' \"twice\": {{ 1 }} \n\n"])
def test_the_configuration_is_in_the_map_as_the_file_has_it(end: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"version: 1\nmodel: {{path: smollm2}}\ndevice: cpu\naggregated: {{}}{end}")
    found = documents(deploy("k8s", path))
    assert found["ConfigMap"]["data"] == {"config.yaml": path.read_text()}
