"""What a controller is made of, once nothing speaks against the deployment.

Way:   serve.py, detached/command.py -> [prepare] -> preflight; -> Prepared -> Controller, frontends
Fails: ConfigError when the preflight refuses, StartError of a model that is not here
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import ray

from disagg import surroundings
from disagg.cluster import cluster_inspect as preflight
from disagg.cluster.elsewhere import for_elsewhere, secret_of
from disagg.cluster.models import KeyAndSpec, Learn, Told
from disagg.cluster.node_labels import labels_of
from disagg.cluster.setting import Setting
from disagg.cluster.specs import frontend_spec, model_spec, shared_by_engines
from disagg.cluster.steps import apart
from disagg.config.schema import Deployment
from disagg.errors import ConfigError, StartError
from disagg.frontend.spec import FrontendSpec
from disagg.models.facts import find_facts
from disagg.models.resolve import resolve_model
from disagg.planning.plan import Plan
from disagg.registry.keys import Keys
from disagg.registry.records import SealedSpec
from disagg.registry.shared import Shared
from disagg.routing.cost.from_shape import prior_of

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Prepared:
    """`here`: where frontends that are started from here reach the controller, and are reached by others."""

    setting: Setting
    spec: FrontendSpec  # but for the controller's addresses
    shared: Shared | None
    models: tuple[KeyAndSpec, ...]  # of several
    learn: Learn
    sealed: SealedSpec | None  # for frontends on other hosts, if there may be any
    here: str


async def model_folders(deployment: Deployment) -> list[Path]:
    models = [part.model for part in deployment.parts()]
    return [await apart(resolve_model, model.path, model.revision) for model in models]


async def prepare(
    deployment: Deployment,
    plans: Sequence[Plan],
    name: str,
    folders: Sequence[Path] | None = None,
    *,
    is_private: bool = False,
    outlives: bool = False,
    is_quiet: bool = False,
) -> Prepared:
    """Ray is connected. `name`: of this run; `outlives`: the command. Raises ConfigError when the preflight refuses
    it."""
    folders, shared, secret = folders or await model_folders(deployment), shared_of(deployment), secret_of(deployment)
    if left_out := surroundings.left_out(os.environ):
        log.info("of the environment, engines and frontends do without %s", ", ".join(left_out))
    seen = await preflight.refuse(plans, [str(folder) for folder in folders])
    labels, unknown = labels_of(seen[0].nodes, deployment.transfer.places)
    for warning in dict.fromkeys([*(warning for each in seen for warning in each.warnings), *unknown]):
        log.warning("%s", warning)
    shared_by = [shared_by_engines(plan, folder) for plan, folder in zip(plans, folders, strict=True)]
    setting = Setting(
        deployment=name,
        device=plans[0].device,
        model_path=shared_by[0].model_path,
        secret=secret.plane.hex() if secret is not None else secrets.token_hex(32),
        deadlines=deployment.deadlines,
        python_path=_python_path(plans[0].device),
        address="127.0.0.1" if is_private else "",
        text=shared_by[0].text,
        labels=labels,
        block_tokens=shared_by[0].block_tokens,
        of_models=dict(zip(deployment.models, shared_by, strict=True)) if deployment.models else {},
        outlives=deployment.name if outlives else "",
    )
    specs = [
        model_spec(plan, folder, prior_of(plan, found.facts, found.gpus, found.gbytes_s))
        for plan, folder, found in zip(plans, folders, seen, strict=True)
    ]
    models = tuple((spec.group, msgspec.to_builtins(spec)) for spec in specs if spec.group)
    spec = frontend_spec(plans[0], () if models else specs, shared, is_quiet=is_quiet)
    # Frontends that are started from here run here; what follows a shared registry may be on another node.
    here, sealed = "127.0.0.1" if is_private or shared is None else ray.util.get_node_ip_address(), None
    if shared is not None and secret is not None:
        spec = msgspec.structs.replace(spec, has_peers=True, peer_host=here)
        sealed = for_elsewhere(spec, deployment, secret)
    learn = functools.partial(_learn, seen[0])
    return Prepared(setting, spec, shared, models, learn, sealed, here)


def shared_of(deployment: Deployment) -> Shared | None:
    """Where the registry is, if it is not in our memory. Raises ConfigError."""
    section = deployment.registry
    if problems := section.problems():
        raise ConfigError("registry", tuple(problems))
    at, model = section.at(), "" if deployment.models else deployment.model.name
    return Shared(at, Keys(deployment.namespace, deployment.name, model)) if at is not None else None


async def _learn(seen: preflight.ClusterInspection, plan: Plan) -> Told:
    """Of a model that comes later. `seen`: the cluster, as it was at the start. Raises StartError."""
    model = plan.model
    folder = await asyncio.to_thread(resolve_model, model.path, model.revision)
    try:
        facts = find_facts(str(folder)) if plan.device != "simulated" else None
    except StartError:  # SGLang may know better, as at the start
        facts = None
    spec = model_spec(plan, folder, prior_of(plan, facts, seen.gpus, seen.gbytes_s))
    return Told(shared_by_engines(plan, folder), msgspec.to_builtins(spec))


def _python_path(device: str) -> list[str]:
    """Folders that engine processes search before site-packages."""
    if device != "cpu":
        return []
    from disagg.cpu_profile.paths import standin_paths

    return standin_paths()
