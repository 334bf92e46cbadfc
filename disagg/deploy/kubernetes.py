"""KubeRay manifests: a ConfigMap with the YAML, the frontend's Service, and a RayJob or a RayService.

Way:   Source + KubernetesOptions -> [render] -> file name -> YAML, for `kubectl apply -f`
Out:   a head pod for the driver and the frontend, no engine on it; a worker group for each kind of node
Fails: problems of the options, before anything is written

The frontend's Service asks the head pod's readiness, which `probe.py` decides. A RayService has to have a Serve
application: `ray_service.py` is one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from disagg.deploy.docker import CONFIG, MODELS
from disagg.deploy.nodes import NodeGroup
from disagg.deploy.probe import LIMIT_S, RAY_PORT
from disagg.deploy.ray_service import HEAD_RESOURCE
from disagg.deploy.source import DNS_LABEL, Source, quoted
from disagg.deploy.yaml_notes import with_notes
from disagg.errors import Problem

Tree = dict[str, Any]
Kind = Literal["rayjob", "rayservice", "both"]
KINDS = ("rayjob", "rayservice", "both")
RAY_VERSION_MIN = (2, 53)  # the first whose nodes tell their health at /api/healthz
SERVE_PORTS = (8099, 8098)  # Ray Serve's own proxy; the second where the frontend has the first
HEAD_CPUS, HEAD_MEMORY = 4, "8Gi"


@dataclass(frozen=True, slots=True)
class KubernetesOptions:
    image: str
    ray_version: str
    kind: str = "both"
    namespace: str | None = None
    shm_gib: int = 64
    memory_gib: int | None = None
    rdma: str | None = None  # an extended resource: rdma/hca, or rdma/hca:4
    host_network: bool = False  # of engine pods
    model_claim: str | None = None
    model_host_path: str | None = None
    model_mount: str = MODELS
    auth_secret: str | None = None  # with the key auth_token; else KubeRay makes one


def problems_of_kubernetes(options: KubernetesOptions) -> Iterator[Problem]:
    if options.kind not in KINDS:
        yield Problem("--kind", f"is {options.kind}", f"say one of {', '.join(KINDS)}")
    if not re.fullmatch(r"[a-z0-9][\w./:@-]*", options.image):
        yield Problem("--image", f"{options.image!r} is no image", "say NAME:TAG, as `docker build` was told")
    version = re.match(r"(\d+)\.(\d+)", options.ray_version)
    if not version or (int(version[1]), int(version[2])) < RAY_VERSION_MIN:
        would_do = f"use an image with {'.'.join(map(str, RAY_VERSION_MIN))} or later"
        yield Problem(
            "--ray-version", f"is {options.ray_version}, whose nodes cannot be asked for their health", would_do
        )
    for flag, value in (
        ("--namespace", options.namespace),
        ("--model-pvc", options.model_claim),
        ("--auth-secret", options.auth_secret),
    ):
        if value is not None and not re.fullmatch(DNS_LABEL.replace("[a-z]", "[a-z0-9]", 1), value):
            yield Problem(flag, f"{value!r} is no name of Kubernetes'", "use lower case letters, digits and dashes")
    if options.rdma is not None and not re.fullmatch(r"[a-z0-9.-]+/[\w.-]+(:[1-9]\d*)?", options.rdma):
        would_do = "say the resource that the RDMA device plugin offers, as rdma/hca or rdma/hca:4"
        yield Problem("--rdma", f"{options.rdma!r} is no extended resource", would_do)
    if options.model_claim and options.model_host_path:
        yield Problem("--model-host-path", "is said beside --model-pvc", "keep one")
    for flag, folder in (("--model-host-path", options.model_host_path), ("--model-mount", options.model_mount)):
        if folder is not None and not folder.startswith("/"):
            yield Problem(flag, f"{folder} is no absolute path", "say one from /")


def render_kubernetes(source: Source, options: KubernetesOptions) -> dict[str, str]:
    """File name -> text."""
    trees = {"configmap.yaml": _config_map(source, options), "service.yaml": _service(source, options)}
    if options.kind in ("rayjob", "both"):
        trees["rayjob.yaml"] = _ray_job(source, options)
    if options.kind in ("rayservice", "both"):
        trees["rayservice.yaml"] = _ray_service(source, options)
    made = f"# Made by `disagg deploy k8s` from {source.file}: change that, and make this anew.\n"
    return {file: made + with_notes(tree, NOTES) for file, tree in trees.items()}


# Said above the first line of a file that begins with the key.
NOTES: Mapping[str, str] = {
    "kind: RayJob": "Apply this or rayservice.yaml, not both: the frontend's Service would take their pods together.",
    "kind: RayService": "Apply this or rayjob.yaml, not both: the frontend's Service would take their pods together.\n"
    "It starts `disagg serve` anew when that ends, and puts a changed cluster beside the old one before it\n"
    "goes, which takes the GPUs of both.",
    "backoffLimit:": "Failures after which a whole new cluster is tried.",
    "authOptions:": "KubeRay 1.5 or later. Without a secretName it makes a token, in a Secret named as the RayCluster.",
    "num-cpus:": "No engine goes here: the driver and the frontend do.",
    "readinessProbe:": "Ray is well, and so is the frontend once there is one.",
    "- name: serve": "Ray Serve's proxy, for KubeRay to look at. Requests go to the frontend.",
    "- name: shared-memory": "/dev/shm of a pod is 64 MiB otherwise; what lies in it counts as memory of the pod.",
    "capabilities:": "RDMA locks what it registers. This lifts the limit for root, as whom the container runs.",
    "hostNetwork:": "RDMA over the host's own interfaces.",
    "- name: agent": "With hostNetwork also what keeps it at one engine pod a host: a port is there once.",
    "publishNotReadyAddresses:": "Nobody is sent to a frontend whose engines still load.",
    "import_path:": "Keeps `disagg serve` running; no request passes through it.",
}


def _config_map(source: Source, options: KubernetesOptions) -> Tree:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(f"{source.name}-config", source, options),
        "data": {"config.yaml": source.text},
    }


def _service(source: Source, options: KubernetesOptions) -> Tree:
    port = source.plan.frontend.port
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(f"{source.name}-frontend", source, options),
        "spec": {
            "type": "ClusterIP",
            "selector": _labels(source, "head"),
            "publishNotReadyAddresses": False,
            "ports": [{"name": "http", "port": port, "targetPort": "http"}],
        },
    }


def _ray_job(source: Source, options: KubernetesOptions) -> Tree:
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": _metadata(source.name, source, options),
        "spec": {
            "entrypoint": quoted(_serve(source)),
            "submissionMode": "K8sJobMode",
            "shutdownAfterJobFinishes": True,
            "backoffLimit": 2,
            "rayClusterSpec": _cluster(source, options, serve_port=None),
        },
    }


def _ray_service(source: Source, options: KubernetesOptions) -> Tree:
    serve_port = next(port for port in SERVE_PORTS if port != source.plan.frontend.port)
    application = {
        "name": "disagg",
        "import_path": "disagg.deploy.ray_service:application",
        "route_prefix": "/",
        "args": {"command": _serve(source), "stop_s": source.stop_s},
    }
    serve_config = {
        "proxy_location": "HeadOnly",
        "http_options": {"host": "0.0.0.0", "port": serve_port},
        "applications": [application],
    }
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": _metadata(source.name, source, options),
        "spec": {
            "serveConfigV2": with_notes(serve_config, {}),
            "upgradeStrategy": {"type": "NewCluster"},
            "rayClusterConfig": _cluster(source, options, serve_port=serve_port),
        },
    }


def _cluster(source: Source, options: KubernetesOptions, serve_port: int | None) -> Tree:
    auth: Tree = {"mode": "token"}
    if options.auth_secret:
        auth["secretName"] = options.auth_secret
    head_start = {"num-cpus": "0", "num-gpus": "0", "dashboard-host": "0.0.0.0"}
    if serve_port is not None:
        head_start["resources"] = f"'{{\"{HEAD_RESOURCE}\": 1}}'"  # KubeRay puts it into a shell's command line
    return {
        "rayVersion": options.ray_version,
        "authOptions": auth,
        "headGroupSpec": {
            "rayStartParams": head_start,
            "template": _pod(source, options, "head", _head_container(source, options, serve_port)),
        },
        "workerGroupSpecs": [
            _worker_group(f"engines-{index}", group, source, options) for index, group in enumerate(source.groups)
        ],
    }


def _head_container(source: Source, options: KubernetesOptions, serve_port: int | None) -> Tree:
    port = source.plan.frontend.port
    ports = [
        {"name": "http", "containerPort": port},
        {"name": "gcs-server", "containerPort": 6379},
        {"name": "dashboard", "containerPort": 8265},
        {"name": "client", "containerPort": 10001},
    ]
    if serve_port is not None:
        ports.append({"name": "serve", "containerPort": serve_port})
    probe = ["python3", "-m", "disagg.deploy.probe", "--port", str(port)]
    return {
        "name": "ray-head",
        "ports": ports,
        "resources": {
            "requests": {"cpu": str(HEAD_CPUS), "memory": HEAD_MEMORY},
            "limits": {"memory": HEAD_MEMORY},
        },
        "readinessProbe": {
            "exec": {"command": probe},
            "initialDelaySeconds": 10,
            "periodSeconds": 5,
            "timeoutSeconds": int(2 * LIMIT_S) + 2,
            "failureThreshold": 1,
        },
    }


def _worker_group(name: str, group: NodeGroup, source: Source, options: KubernetesOptions) -> Tree:
    amounts: Tree = {"cpu": str(group.cpus)}
    limits: Tree = {}
    if options.memory_gib is not None:
        amounts["memory"] = limits["memory"] = f"{options.memory_gib}Gi"
    if group.gpus:
        amounts["nvidia.com/gpu"] = limits["nvidia.com/gpu"] = str(group.gpus)
    if options.rdma is not None:
        resource, _, count = options.rdma.partition(":")
        amounts[resource] = limits[resource] = count or "1"
    container = {
        "name": "ray-worker",
        "ports": [{"name": "agent", "containerPort": RAY_PORT}],
        "resources": {"requests": amounts, **({"limits": limits} if limits else {})},
        "readinessProbe": {
            "httpGet": {"path": "/api/healthz", "port": RAY_PORT},
            "periodSeconds": 5,
            "timeoutSeconds": int(LIMIT_S),
        },
    }
    return {
        "groupName": name,
        "replicas": group.count,
        "minReplicas": group.count,
        "maxReplicas": group.count,
        "rayStartParams": {"num-cpus": str(group.cpus), "num-gpus": str(group.gpus)},
        "template": _pod(source, options, "engines", container),
    }


def _pod(source: Source, options: KubernetesOptions, part: str, container: Tree) -> Tree:
    volumes: list[Tree] = [{"name": "config", "configMap": {"name": f"{source.name}-config"}}]
    mounts: list[Tree] = [{"name": "config", "mountPath": CONFIG.rpartition("/")[0], "readOnly": True}]
    if part == "engines":
        shared = {"medium": "Memory", "sizeLimit": f"{options.shm_gib}Gi"}
        volumes.append({"name": "shared-memory", "emptyDir": shared})
        mounts.append({"name": "shared-memory", "mountPath": "/dev/shm"})
    env = [{"name": "RAY_USAGE_STATS_ENABLED", "value": "0"}]
    if (model := _model_volume(options)) is not None:
        volumes.append(model)
        mounts.append({"name": "models", "mountPath": options.model_mount})
        env += [
            {"name": "DISAGG_CACHE", "value": f"{options.model_mount}/disagg"},
            {"name": "HF_HOME", "value": f"{options.model_mount}/huggingface"},
        ]
    container = {
        "name": container["name"],
        "image": options.image,
        **{key: value for key, value in container.items() if key != "name"},
        "env": env,
        "volumeMounts": mounts,
    }
    if part == "engines" and (source.has_gpus or options.rdma):
        container["securityContext"] = {"capabilities": {"add": ["IPC_LOCK"]}}
    on_host = options.host_network and part == "engines"
    network = {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"} if on_host else {}
    grace = {"terminationGracePeriodSeconds": source.stop_s} if part == "head" else {}
    return {
        "metadata": {"labels": _labels(source, part)},
        "spec": {**network, **grace, "containers": [container], "volumes": volumes},
    }


def _model_volume(options: KubernetesOptions) -> Tree | None:
    if options.model_claim:
        return {"name": "models", "persistentVolumeClaim": {"claimName": options.model_claim}}
    if options.model_host_path:
        return {"name": "models", "hostPath": {"path": options.model_host_path, "type": "Directory"}}
    return None


def _serve(source: Source) -> list[str]:
    return source.serve_command(CONFIG, "ray.address=auto", "frontend.host=0.0.0.0")


def _metadata(name: str, source: Source, options: KubernetesOptions) -> Tree:
    namespace = options.namespace or source.namespace
    placed = {"namespace": namespace} if namespace else {}
    return {"name": name, **placed, "labels": {"disagg/deployment": source.name}}


def _labels(source: Source, part: str) -> Tree:
    return {"disagg/deployment": source.name, "disagg/part": part}
