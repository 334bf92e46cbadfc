"""A deployment resolved to engines: which there are, what each is given, and how it will be started.

Way:   Deployment + device -> [Plan] -> cluster starts it; `disagg check` assesses it
Out:   engine ids that stay the same from start to start: prefill-0, prefill-1, decode-0, aggregated-0, counted
       a role; of several models NAME.prefill-0
Fails: ConfigError when the device and the resources asked for exclude each other
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from disagg.config.engine_arguments import check_arguments
from disagg.config.frontend import FrontendSection
from disagg.config.model import ModelSection
from disagg.config.rules import gpus_fit, texts_of
from disagg.config.schema import Deadlines, Deployment, Pool, Ray
from disagg.config.traces import HEADERS_VARIABLE
from disagg.errors import ConfigError, Problem
from disagg.lives import engine_id_in
from disagg.planning.kv_pages import block_tokens
from disagg.policy_names import reads_prefixes
from disagg.role_table import ROLES
from disagg.roles import Role
from disagg.sglang.arguments import LORA_DEFAULTS, Ports, engine_arguments, engine_environment
from disagg.sglang.releases import installed_release
from disagg.sglang.versions import emit
from disagg.simulated_engine.arguments import simulated_arguments

Device = Literal["cpu", "cuda", "simulated"]
DECIDED_AT_START = (
    "host",
    "port",
    "nccl_port",
    "dist_init_addr",
    "disaggregation_bootstrap_port",
    "bootstrap_host",
    "bootstrap_port",
)


@dataclass(frozen=True, slots=True)
class EnginePlan:
    """One engine, whatever its incarnation. `engine` is what its pool says; `engine_arguments` completes it."""

    id: str
    role: Role
    pool: str  # its pool's name, or role and index: prefill.0
    pool_index: int
    cpus: float  # on each node
    gpus: float
    nodes: int
    ranks: int  # tp_size * pp_size, over all nodes
    dp_ranks: int  # attention-data-parallel schedulers
    engine: dict[str, Any]
    env: dict[str, str]  # what the pool says
    spare: bool = False  # processes are kept ready for its next incarnation
    pace_ms: float | None = None  # of a role that is paced (decode/pace.py)
    group: str = ""  # which of several models it has: only these meet

    def arguments(self, *, device: str, model_path: str, host: str, ports: Ports) -> dict[str, Any]:
        """Keyword arguments of `sglang.Engine`, or of the simulated one, for one incarnation."""
        if device == "simulated":
            return simulated_arguments(self.role, self.engine, host=host, bootstrap_port=ports.bootstrap)
        return engine_arguments(self.role, self.engine, device=device, model_path=model_path, host=host, ports=ports)

    def environment(self, *, device: str, deadlines: Deadlines) -> dict[str, str]:
        """The pool's own variables over ours."""
        if device == "simulated":
            return self.env
        pace_ms = self.pace_ms
        ours = engine_environment(self.role, device=device, deadlines=deadlines, ranks=self.ranks, pace_ms=pace_ms)
        return ours | self.env


@dataclass(frozen=True, slots=True)
class Plan:
    """Of one model; of several there is one each."""

    deployment: Deployment
    device: Device
    engines: tuple[EnginePlan, ...]
    warnings: tuple[str, ...] = ()
    beside: tuple[EnginePlan, ...] = ()  # engines of the other models, which need places too

    @property
    def model(self) -> ModelSection:
        return self.deployment.model

    @property
    def ray(self) -> Ray:
        return self.deployment.ray

    @property
    def frontend(self) -> FrontendSection:
        return self.deployment.frontend

    @property
    def deadlines(self) -> Deadlines:
        return self.deployment.deadlines

    @property
    def block_tokens(self) -> int:
        """Tokens of a KV block, in which routing counts what is cached."""
        return block_tokens(engine.engine for engine in self.engines if not ROLES[engine.role].embeds)

    @property
    def tells_cache(self) -> bool:
        """Whether engines tell frontends what they have cached: where the policy asks for it."""
        routing = self.deployment.routing
        return routing.kv_events and reads_prefixes(str(routing.policy))

    def largest_first(self) -> list[EnginePlan]:
        """The order in which engines are placed: small ones in front could leave a large one without a node."""
        return sorted((*self.engines, *self.beside), key=lambda engine: (-engine.gpus, -engine.cpus))

    def of_role(self, role: Role) -> tuple[EnginePlan, ...]:
        return tuple(engine for engine in self.engines if engine.role is role)


def device_of(deployment: Deployment, cluster_gpus: float) -> Device:
    """What the YAML says, or, for auto, cpu or cuda by whether the cluster has a GPU."""
    return ("cuda" if cluster_gpus > 0 else "cpu") if deployment.device == "auto" else deployment.device


def resolve_parts(deployment: Deployment, device: Device) -> tuple[Plan, ...]:
    """A plan for each model. Raises ConfigError with the problems of all."""
    plans: list[Plan] = []
    problems: list[Problem] = []
    for part in deployment.parts():
        try:
            plans.append(resolve(part, device))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError("plan", tuple(problems))
    engines = [engine for plan in plans for engine in plan.engines]
    return tuple(
        replace(plan, beside=tuple(each for each in engines if each.group != plan.deployment.key)) for plan in plans
    )


def together(plans: Sequence[Plan], deployment: Deployment) -> Plan:
    """All engines of all models, for who gives them places and asks no more. (It has no model.)"""
    warnings = dict.fromkeys(warning for plan in plans for warning in plan.warnings)
    engines = tuple(engine for plan in plans for engine in plan.engines)
    return Plan(deployment, plans[0].device, engines, tuple(warnings))


def resolve(deployment: Deployment, device: Device) -> Plan:
    """Of one model: a part of several, or all there is."""
    assert not deployment.models, "one of its parts at a time"
    engines: list[EnginePlan] = []
    counts: Counter[Role] = Counter()
    for role, index, pool in deployment.pools():
        for _ in range(pool.replicas):
            engine_id = engine_id_in(deployment.key, f"{role.value}-{counts[role]}")
            engines.append(_engine(engine_id, role, index, pool, deployment, device))
            counts[role] += 1
    texts = texts_of(deployment)
    if problems := tuple(problem for text in texts for problem in gpus_fit(text, device)):
        raise ConfigError("plan", problems)
    warnings = () if device == "simulated" else tuple(check_arguments(texts, installed_release())[1])
    return Plan(deployment=deployment, device=device, engines=tuple(engines), warnings=warnings)


def complete_arguments(plan: Plan, engine: EnginePlan) -> dict[str, Any]:
    """The arguments an engine will get, in neutral names. What is known only when an incarnation starts reads `auto`.
    Of an engine over several nodes: what its first member gets."""
    arguments = engine.arguments(device=plan.device, model_path=plan.model.path, host="", ports=Ports.from_first(0))
    if engine.nodes > 1 and plan.device != "simulated":
        arguments |= {"nnodes": engine.nodes, "node_rank": 0}
    return arguments | {name: "auto" for name in DECIDED_AT_START if name in arguments}


def shown_arguments(plan: Plan, engine: EnginePlan) -> dict[str, Any]:
    """In order of name, spelled as the SGLang here spells them."""
    arguments, sglang = complete_arguments(plan, engine), installed_release()
    if plan.device != "simulated" and sglang is not None:
        arguments = emit(arguments, sglang.version)
    return dict(sorted(arguments.items()))


def shown_environment(plan: Plan, engine: EnginePlan) -> dict[str, str]:
    environment = engine.environment(device=plan.device, deadlines=plan.deadlines)
    return {name: "(hidden)" if name == HEADERS_VARIABLE else value for name, value in sorted(environment.items())}


def _engine(engine_id: str, role: Role, index: int, pool: Pool, deployment: Deployment, device: str) -> EnginePlan:
    of_all: dict[str, Any] = {}
    env: dict[str, str] = pool.env
    if device != "simulated":
        telemetry = deployment.telemetry
        is_default = telemetry.log_level == type(telemetry).model_fields["log_level"].default
        if not is_default and "log_level" not in pool.engine:
            of_all["log_level"] = telemetry.log_level
        if telemetry.engine_metrics:
            of_all |= {"enable_metrics": True} | pool.engine
        if telemetry.traces is not None:
            of_all |= telemetry.traces.engine_arguments | pool.engine
            env = telemetry.traces.engine_environment | env
        of_all |= {"trust_remote_code": True} if deployment.model.trust_remote_code else {}
        if deployment.model.lora is not None:
            of_all |= LORA_DEFAULTS.get(device, {}) | pool.engine | deployment.model.lora.arguments
    ranks = pool.ranks_of_engine
    default_gpus = ranks // pool.nodes if device == "cuda" else 0
    return EnginePlan(
        id=engine_id,
        role=role,
        pool=pool.name or f"{role.value}.{index}",
        pool_index=index,
        cpus=pool.resources.cpus,
        gpus=default_gpus if pool.resources.gpus is None else pool.resources.gpus,
        nodes=pool.nodes,
        ranks=ranks,
        dp_ranks=int(pool.engine.get("dp_size", 1)),
        engine=pool.engine | of_all,
        env=env,
        spare=device != "simulated" and (device == "cuda" if pool.spare is None else pool.spare),
        pace_ms=None if device == "simulated" else pool.pace_ms,
        group=deployment.key,
    )
