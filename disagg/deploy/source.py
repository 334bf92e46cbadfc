"""What every rendering starts from: the YAML's text, its overrides, its plan, and the nodes that the plan needs.

Way:   command line -> [Source] -> kubernetes | slurm | docker -> text
In:    a configuration as `disagg serve` takes it; problems the command line's own options have already
Fails: ConfigError with the problems of the YAML and of the options together; nothing has been written
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from disagg.config.find import find_config
from disagg.config.schema import Deployment
from disagg.config.secrets import spelt
from disagg.deploy.nodes import NodeGroup, pack, unfit
from disagg.errors import ConfigError, Problem
from disagg.load import load_config, shipped_text
from disagg.planning.plan import Plan, device_of, resolve_parts, together

STOP_MARGIN_S = 50  # engines are made to stop, their Ray workers end, the registry and Ray hear of it
KEYS_FILE = ", and name a file with them on the node of `disagg serve`: security.keys_file (k8s: --keys-secret)"
GPUS_PER_NODE = 8  # of a cuda deployment, unless said
DNS_LABEL = r"[a-z]([-a-z0-9]*[a-z0-9])?"


@dataclass(frozen=True, slots=True)
class Source:
    name: str  # of the deployment on its scheduler: letters, digits and dashes
    namespace: str | None  # where the YAML says one
    file: str  # the configuration's own name, for comments
    text: str  # of the YAML: as it is, or as one tree where it needs what is only here
    sets: tuple[str, ...]
    plan: Plan
    groups: tuple[NodeGroup, ...]
    has_gpus: bool

    @property
    def node_count(self) -> int:
        return sum(group.count for group in self.groups)

    @property
    def stop_s(self) -> int:
        """What `disagg serve` may take to end in order: it drains, then engines stop."""
        deadlines = self.plan.deadlines
        return math.ceil(deadlines.drain_s + deadlines.stop_s) + STOP_MARGIN_S

    def serve_command(self, config: str, *more_sets: str) -> list[str]:
        """The words of `disagg serve`. Our sets come last, as later ones win. The name is set, as the file is renamed
        there."""
        words = ["disagg", "serve", config]
        for each in (f"name={self.plan.deployment.name}", *self.sets, *more_sets):
            words += ["--set", each]
        return words


def read_source(
    config: str,
    sets: Sequence[str],
    problems: Iterable[Problem] = (),
    *,
    name: str | None = None,
    gpus_per_node: int | None = None,
    cpus_per_node: int | None = None,
) -> Source:
    found = list(problems)
    path: Path | None = None
    deployment: Deployment | None = None
    try:
        path = find_config(config)
        deployment = load_config(path, sets)
    except ConfigError as error:
        found += error.problems
    if name is not None and (not re.fullmatch(DNS_LABEL, name) or len(name) > NAME_MAX):
        would_do = f"use a lower case letter, then letters, digits and dashes, {NAME_MAX} at most"
        found.append(Problem("--name", f"{name!r} names nothing on a cluster", would_do))
    plan, gpus = None, 0
    if deployment is not None:
        try:
            gpus = _gpus_per_node(deployment, gpus_per_node)
            plans = resolve_parts(deployment, device_of(deployment, gpus))
            plan = together(plans, deployment)
            found += [problem for each in plans for problem in unfit(each, gpus, cpus_per_node)]
            for secret in spelt(deployment):
                what, is_of_keys = "could be read by whoever reads what is rendered", secret[-1].endswith("_keys")
                would_do = f"leave it out here{KEYS_FILE if is_of_keys else ', or serve by hand'}"
                found.append(Problem(".".join(secret), what, would_do))
            if deployment.frontend.tls is not None:
                what = "names files that are not where this is rendered for"
                would_do = "leave it out here, and put TLS in front of the frontend: an Ingress, a proxy"
                found.append(Problem("frontend.tls", what, would_do))
        except ConfigError as error:
            found += error.problems
    if found or plan is None or path is None:
        raise ConfigError(config, tuple(found))
    text, sets = shipped_text(path, sets)
    return Source(
        name=name or _scheduler_name(plan.deployment.name),
        namespace=plan.deployment.namespace if "namespace" in plan.deployment.model_fields_set else None,
        file=path.name,
        text=text,
        sets=tuple(sets),
        plan=plan,
        groups=pack(plan, gpus, cpus_per_node),
        has_gpus=plan.device == "cuda",
    )


NAME_MAX = 47  # KubeRay makes RayCluster names of it: 53, less its own suffix


def _scheduler_name(name: str) -> str:
    """The deployment's, which may be longer and begin with a digit."""
    named = name if re.match("[a-z]", name) else f"disagg-{name}"
    return named[:NAME_MAX].rstrip("-")


def _gpus_per_node(deployment: Deployment, said: int | None) -> int:
    if said is not None:
        return said
    if deployment.device == "auto":
        what = "the deployment runs on whatever it finds (device: auto), and what it will find is needed here"
        raise ConfigError("options", (Problem("--gpus-per-node", what, "say it; 0 where there is none"),))
    return GPUS_PER_NODE if deployment.device == "cuda" else 0
