"""KubeRay manifests: a ConfigMap with the YAML, the frontend's Service, and a RayJob or a RayService.

Way:   Source + KubernetesOptions -> [render] -> file name -> YAML, for `kubectl apply -f`; manifests/ holds what it is
       rendered from, a template a file
Out:   a head pod for the driver and the frontend, no engine on it; a worker group for each kind of node
Fails: problems of the options, before anything is written

The frontend's Service asks the head pod's readiness, which `probe.py` decides. A RayService has to have a Serve
application: `ray_service.py` is one.
"""

from __future__ import annotations

import math
import re
import shlex
import textwrap
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import jinja2
import yaml

from disagg.deploy.docker import CONFIG, MODELS
from disagg.deploy.nodes import NodeGroup
from disagg.deploy.probe import LIMIT_S, RAY_PORT
from disagg.deploy.ray_service import HEAD_RESOURCE
from disagg.deploy.source import DNS_LABEL, Source
from disagg.errors import Problem

KINDS = ("rayjob", "rayservice", "both")
RAY_VERSION_MIN = (2, 53)  # the first whose nodes tell their health at /api/healthz
# Text to PyYAML, and a number or a truth value to Kubernetes' reader.
READ_OTHERWISE = re.compile(r"[yYnN]|[-+]?[\d._]+[eE][-+]?\d+|[-+]?0[oO][0-7]+")
KEYS_FOLDER = "/etc/disagg-keys"
SERVE_PORTS = (8099, 8098)  # Ray Serve's own proxy; the second where the frontend has the first


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
    keys_secret: str | None = None  # with the key keys.yaml, as security.keys_file wants it


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
        ("--keys-secret", options.keys_secret),
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
    values = _values(source, options)
    kinds = ("rayjob", "rayservice") if options.kind == "both" else (options.kind,)
    names = [f"{each}.yaml" for each in ("configmap", "service", *kinds)]
    templates = _templates()
    return {name: templates.get_template(f"{name}.j2").render(values) for name in names}


def _values(source: Source, options: KubernetesOptions) -> dict[str, Any]:
    """What the templates are filled with."""
    port = source.plan.frontend.port
    keys = [f"security.keys_file={KEYS_FOLDER}/keys.yaml"] if options.keys_secret else []
    command = source.serve_command(CONFIG, "ray.address=auto", "frontend.host=0.0.0.0", *keys)
    return {
        **asdict(options),
        "made_from": source.file,
        "name": source.name,
        "namespace": options.namespace or source.namespace,
        "config": source.text,
        "config_folder": CONFIG.rpartition("/")[0],
        "keys_folder": KEYS_FOLDER,
        "port": port,
        "serve_port": next(each for each in SERVE_PORTS if each != port),
        "agent_port": RAY_PORT,
        "command": command,
        "entrypoint": shlex.join(command),
        "stop_s": source.stop_s,
        "probe_s": int(LIMIT_S),
        "head_probe_s": int(2 * LIMIT_S) + 2,
        # KubeRay puts it into a shell's command line
        "head_resources": f"'{{\"{HEAD_RESOURCE}\": 1}}'",
        "groups": [{**asdict(group), "limits": _limits(group, options)} for group in source.groups],
        "has_models": options.model_claim is not None or options.model_host_path is not None,
        "locks_memory": source.has_gpus or options.rdma is not None,
    }


def _limits(group: NodeGroup, options: KubernetesOptions) -> dict[str, str]:
    """What an engine pod gets, and no more, beside its CPUs: Kubernetes' resource -> amount."""
    limits = {}
    if options.memory_gib is not None:
        limits["memory"] = f"{options.memory_gib}Gi"
    if group.gpus:
        limits["nvidia.com/gpu"] = str(group.gpus)
    if options.rdma is not None:
        resource, _, count = options.rdma.partition(":")
        limits[resource] = count or "1"
    return limits


def _templates() -> jinja2.Environment:
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("disagg.deploy", "manifests"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_scalar,
    )
    templates.filters["text_block"] = _text_block
    return templates


class _Written(str):
    """YAML already."""


def _scalar(value: Any) -> str:
    """What a template puts in with {{ }} is one value, on one line, in quotes where YAML needs them."""
    if isinstance(value, _Written):
        return value
    style = '"' if isinstance(value, str) and ("\n" in value or READ_OTHERWISE.fullmatch(value)) else None
    return yaml.safe_dump(value, default_style=style, width=math.inf).removesuffix("...\n").removesuffix("\n")


def _text_block(text: str, indent: int) -> _Written:
    """Several lines as they are, where YAML can say them so."""
    block = yaml.safe_dump(text, default_style="|", width=math.inf)
    block = re.sub(r"\n(\.\.\.\n)?\Z", "", block)  # behind text that ends with an empty line PyYAML ends the document
    return _Written(textwrap.indent(block, " " * (indent - 2)).lstrip())
