"""The deployment's YAML as types: what may be said, its default, its bounds.

Way:   YAML -> tree -> [Deployment] -> rules -> plan
In:    a plain tree (yaml_text, overrides); `load_config` is the door
Out:   a frozen Deployment; every role is a tuple of pools, however it was written
Fails: pydantic's ValidationError, which `validation_errors.py` turns into Problems with YAML paths. A validator's
       message is "what is wrong; what would do"
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PrivateAttr,
    ValidationInfo,
    field_validator,
    model_validator,
)

from disagg.config.frontend import FrontendSection, Security
from disagg.config.model import ModelSection
from disagg.config.model_texts import path_in
from disagg.config.registry import RegistrySection
from disagg.config.section import Remedy, Section, listed
from disagg.config.traces import Traces
from disagg.policy_names import DEFAULT, LEAST_LOADED, SHIPPED
from disagg.role_table import ROLES
from disagg.roles import Role
from disagg.sglang.versions import neutral

# SGLang's bootstrap and transfer timeouts are 300 s by default, and parts of SGLang use 300 s whatever we set.
SGLANG_TIMEOUT_S = 300.0
FIRST_TOKEN_LIMIT = "stay below 300: SGLang ends a leg after 300 s by itself, and tells only one side"
POOL_NAME = r"^[A-Za-z0-9]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?$"
DNS_LABEL = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"

# Variables of an engine's environment that the orchestrator sets, and which key sets them instead.
OWNED_ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "resources.gpus",
    "SGLANG_USE_CPU_ENGINE": "device",
    "SGLANG_DISAGGREGATION_BOOTSTRAP_TIMEOUT": "deadlines.first_token_s",
    "SGLANG_DISAGGREGATION_WAITING_TIMEOUT": "deadlines.first_token_s",
}


class Ray(Section):
    """Where the engines run.

    auto       the cluster RAY_ADDRESS names (`ray job submit` sets it), else one running on this machine, else a
               private local one, started and stopped with the deployment
    local      always a private local one
    HOST:PORT  the cluster whose head listens there

    `cpus` and `gpus` are what a private local cluster offers (Ray's logical units); default: what Ray finds.
    """

    address: str = "auto"
    """auto, local, or HOST:PORT of the cluster's head."""
    cpus: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Of a private local cluster; logical units."""
    gpus: Annotated[int, Field(ge=0, le=10_000)] | None = None
    """Of a private local cluster."""

    @field_validator("address")
    @classmethod
    def _known_form(cls, address: str) -> str:
        if address.startswith("ray://"):
            raise ValueError(
                "Ray Client is not supported; run `disagg serve` on a node, or with `ray job submit`, and say auto"
            )
        port = re.fullmatch(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):(\d{1,5})", address)
        if address not in ("auto", "local") and not (port and 0 < int(port[1]) < 65536):
            raise ValueError(f"{address!r} is no address of a Ray cluster; say auto, local or HOST:PORT")
        return address

    @field_validator("cpus", "gpus")
    @classmethod
    def _only_of_a_local_one(cls, count: int | None, info: ValidationInfo) -> int | None:
        address = info.data.get("address", "auto")
        if count is not None and address not in ("auto", "local"):
            raise ValueError(f"the cluster at {address} has what it has; leave it out, or say address: local")
        return count


class Resources(Section):
    """Of an engine on each of its nodes."""

    cpus: Annotated[float, Field(ge=0, le=1024)] = 1.0
    """Ray's logical CPUs."""
    gpus: Annotated[float, Field(ge=0, le=1024)] | None = None
    """Default: a GPU for each rank there on cuda, 0 on cpu. A fraction shares a GPU."""

    @field_validator("gpus")
    @classmethod
    def _whole_above_one(cls, gpus: float | None) -> float | None:
        if gpus is not None and gpus > 1 and not gpus.is_integer():
            raise ValueError(f"Ray gives a part of one GPU or whole ones, and this is {gpus}; say {int(gpus) + 1}")
        return gpus


def _environment_text(value: Any) -> Any:
    """Numbers become their text; a bare true or no is refused, as its text could be any of several."""
    if isinstance(value, bool):
        raise ValueError(f"YAML reads this as {value}, and what a program makes of it differs; quote the text you mean")
    return str(value) if isinstance(value, int | float) else value


EnvironmentText = Annotated[str, BeforeValidator(_environment_text, json_schema_input_type=str | int | float)]


class Pool(Section):
    """`replicas` engines of one shape, each over `nodes` nodes. `engine` holds SGLang's own arguments (checked in
    disagg/config/engine_arguments.py)."""

    name: Annotated[str, Field(pattern=POOL_NAME)] | None = None
    """What messages call the pool; default: role and index."""
    replicas: Annotated[int, Field(ge=1, le=1000)] = 1
    """How many engines."""
    nodes: Annotated[int, Field(ge=1, le=256)] = 1
    """Over how many nodes each engine goes."""
    resources: Resources = Resources()
    """Of an engine on each of its nodes."""
    engine: dict[str, Any] = Field({})
    """SGLang's own arguments, as page_size or page-size."""
    env: dict[str, EnvironmentText] = Field({})
    """Environment variables of the engines."""
    spare: bool | None = None
    """Each engine keeps a standby: processes that have imported everything, for its next start. Starts are quicker, and
    host memory is used. Default: on cuda. On cpu engines are forked, which is as quick; with true they are not
    forked."""
    pace_ms: Annotated[float, Field(ge=1, le=200)] | None = None
    """For a decode engine that shares its GPU with a prefill engine. While one of its requests waits for the prefill,
    its steps begin at least this many milliseconds apart, and prefill has the GPU in between."""

    @field_validator("engine", mode="before")
    @classmethod
    def _spelled_as_python(cls, engine: Any) -> Any:
        """`page-size`, as on SGLang's command line, is page_size; names of other releases become the neutral ones."""
        return neutral({spelled(name): value for name, value in engine.items()}) if isinstance(engine, dict) else engine

    @field_validator("env")
    @classmethod
    def _not_ours(cls, env: dict[str, str]) -> dict[str, str]:
        for name in env:
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                raise ValueError(f"{name!r} is no name of an environment variable; use letters, digits and _")
            if name.startswith("DISAGG_"):
                raise ValueError(f"{name} is disagg's own, and set by it; leave it out")
            if name in OWNED_ENVIRONMENT:
                raise ValueError(f"{name} is set by disagg; say {OWNED_ENVIRONMENT[name]} instead")
        return env

    @property
    def ranks_of_engine(self) -> int:
        """Over all its nodes; each uses a GPU of its own."""
        return int(self.engine.get("tp_size", 1)) * int(self.engine.get("pp_size", 1))


def spelled(name: Any) -> Any:
    return name.removeprefix("--").replace("-", "_") if isinstance(name, str) else name


BelowSglang = Annotated[float, Field(gt=0, lt=SGLANG_TIMEOUT_S), Remedy(FIRST_TOKEN_LIMIT)]


class Deadlines(Section):
    """Seconds. Each ends a wait with a typed error; none can be switched off."""

    start_s: Annotated[float, Field(gt=0, le=7200)] = 600.0
    """An engine becomes READY."""
    first_token_s: BelowSglang = 120.0
    """Dispatched -> the first token."""
    queue_s: Annotated[float, Field(gt=0, le=3600)] = 30.0
    """Waits for room on READY engines."""
    bootstrap_s: BelowSglang = 60.0
    """Dispatched -> the prompt's turn in its prefill engine."""
    transfer_s: BelowSglang = 30.0
    """The prompt is read -> the first token."""
    next_token_s: Annotated[float, Field(gt=0, le=3600)] = 60.0
    """One token -> the next."""
    request_s: Annotated[float, Field(gt=0, le=86_400)] = 1800.0
    """Received -> finished."""
    no_pair_s: Annotated[float, Field(ge=0, le=SGLANG_TIMEOUT_S)] = 10.0
    """Waits for a READY pair."""
    drain_s: Annotated[float, Field(gt=0, le=3600)] = 30.0
    """Asked to drain -> what still runs migrates."""
    stop_s: Annotated[float, Field(gt=0, le=600)] = 10.0
    """Asked to stop -> made to stop."""

    @field_validator("request_s")
    @classmethod
    def _holds_the_first_token(cls, request_s: float, info: ValidationInfo) -> float:
        first_token_s = info.data.get("first_token_s", 0)
        if request_s < first_token_s:
            raise ValueError(
                f"{request_s:g} is below first_token_s, which is {first_token_s:g}; raise it or lower that"
            )
        return request_s


def _known_policy(name: str) -> str:
    if name not in SHIPPED and not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", name):
        would_do = f"say one of {', '.join(SHIPPED)}, or module:Class of one that frontends can import"
        raise ValueError(f"there is no policy {name!r}; {would_do}")
    return name


PolicyName = Annotated[str, AfterValidator(_known_policy)]


class PolicyOfSides(Section):
    """Each role by a policy of its own; one that is not named goes by load."""

    prefill: PolicyName | None = None
    """Which prefill engine."""
    decode: PolicyName | None = None
    """Which decode engine, of those that have met it."""
    aggregated: PolicyName | None = None
    """Which engine, of those that serve alone."""

    def __str__(self) -> str:
        """As load_policy takes it."""
        named = {role: name for role, name in self if name is not None}
        return ",".join(f"{role}={name}" for role, name in named.items()) or LEAST_LOADED


class Routing(Section):
    """Where requests go, how many wait, and how often one is tried again."""

    queue_max: Annotated[int, Field(ge=0, le=1_000_000)] = 1024
    """Requests that wait in a frontend; the next one gets 429 at once."""
    retry_limit: Annotated[int, Field(ge=0, le=100)] = 3
    """Tries after the first, before the first token."""
    migration_limit: Annotated[int, Field(ge=0, le=100)] = 3
    """Moves to another pair after it."""
    migration_tokens_max: Annotated[int, Field(ge=1)] = 1 << 30
    """A longer request (prompt and output) does not move."""
    policy: PolicyName | PolicyOfSides = DEFAULT
    """What chooses the engines of a request: a shipped one by name, a class that frontends can import, as module:Class,
    or one for each role."""
    read_ahead_tokens: Annotated[int, Field(ge=1, le=1 << 30)] | None = None
    """With policy predicted: while so many prompt tokens lie unread before an engine, further prompts wait in the
    frontend, where one that comes later may still go first. Less: fairer; more: an engine is never without work.
    Default: two of the chunks in which a rank reads, so that one is full when the one before it ends; at least 4096."""
    kv_events: bool = True
    """Engines tell frontends what their prefix caches hold, if the policy asks for it. Without it that is guessed from
    what was sent there."""


class HealthSection(Section):
    """How engines are watched. Progress under load is watched always."""

    canary_s: Annotated[float, Field(ge=1, le=3600)] = 10.0
    """Seconds between two canaries of an idle engine."""


Lane = Literal["cuda_ipc", "rdma", "shm", "tcp"]
Lanes = Annotated[tuple[Lane, ...], BeforeValidator(listed, json_schema_input_type=list[Lane])]


PlaceName = Annotated[str, Field(pattern=POOL_NAME)]


class NodeLabels(Section):
    """What a node shares with others. KV is expected to take about as long between two nodes as between others that
    share as much."""

    nvlink: PlaceName | None = None
    """The NVLink domain. Default: as its GPUs say."""
    rail: PlaceName | None = None
    """The rail, or leaf switch."""
    rack: PlaceName | None = None
    """The rack."""

    @property
    def said(self) -> dict[str, str]:
        return {kind: name for kind, name in self if name is not None}


class Transfer(Section):
    """How KV travels from prefill to decode engines."""

    page_size: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Tokens a page, of every prefill and decode engine whose pool does not say it itself."""
    allow_tcp: bool = False
    """KV of GPUs may go over TCP. Without it that is refused: it takes minutes where RDMA takes seconds."""
    lanes: Lanes = ()
    """The preflight refuses nodes that none of these lanes joins. Default: any lane but TCP. It does not choose a lane:
    NIXL takes the best one there is."""
    places: dict[str, NodeLabels] = Field(default={})
    """Labels of nodes, by host name or address in the Ray cluster: what they share. Routing learns how long KV takes
    between nodes that share as much as two others, and need not measure each two."""

    @field_validator("lanes")
    @classmethod
    def _as_allow_tcp_says(cls, lanes: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        allowed = info.data.get("allow_tcp", False)
        if "tcp" in lanes and not allowed:
            raise ValueError("name tcp, which transfer.allow_tcp forbids; say allow_tcp: true, or take tcp out")
        if lanes and "tcp" not in lanes and allowed:
            raise ValueError("leave tcp out, which transfer.allow_tcp allows; add tcp, or say allow_tcp: false")
        return lanes


Alias = Literal["sglang", "vllm", "otel"]
Aliases = Annotated[tuple[Alias, ...], BeforeValidator(listed, json_schema_input_type=list[Alias])]


class Telemetry(Section):
    """What the deployment tells of itself."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Of the engines' logs; a pool's own `engine.log_level` is stronger."""
    traces: Traces | None = None
    """Where traces of requests go; default: nowhere."""
    engine_metrics: bool = False
    """SGLang's own metrics at /metrics/engines: engines run with --enable-metrics."""
    metric_aliases: Aliases = ()
    """Whose names /metrics has beside ours, for boards that exist: sglang, vllm, otel (OpenTelemetry's for generative
    AI)."""


def _as_list(pools: Any) -> Any:
    """One pool or a list of pools; absent and `null` mean none."""
    if isinstance(pools, dict):
        return (pools,)
    if isinstance(pools, list):
        return tuple({} if pool is None else pool for pool in pools)
    return () if pools is None else pools


MAY_BE_EMPTY = ("ray", "frontend", "deadlines", "routing", "health", "transfer", "registry", "security", "telemetry")
Pools = Annotated[tuple[Pool, ...], BeforeValidator(_as_list, json_schema_input_type=Pool | list[Pool | None] | None)]


class ModelWithEngines(ModelSection):
    """One of several models, with engines of its own: only these meet."""

    prefill: Pools = ()
    """Engines that read prompts: a pool, or a list of pools."""
    decode: Pools = ()
    """Engines that make tokens: a pool, or a list of pools."""
    aggregated: Pools = ()
    """Engines that do both: a pool, or a list of pools."""
    embedding: Pools = ()
    """Engines that make vectors and scores, and no tokens: a pool, or a list of pools."""


ModelKey = Annotated[str, Field(pattern=POOL_NAME)]


class Deployment(Section):
    """One model served by prefill and decode engines, or by aggregated ones; as vectors by embedding engines. Or
    several such models: `parts` are what each of them would be alone."""

    version: Literal[1]
    """Of this format."""
    extends: str | None = None
    """A shipped configuration by name, or a file beside this one: what is not said here is taken from there."""
    name: Annotated[str, Field(pattern=DNS_LABEL)] = "disagg"
    """Of this deployment; default: the file's name."""
    namespace: Annotated[str, Field(pattern=DNS_LABEL)] = "disagg"
    """Deployments of one namespace have different names."""
    device: Literal["auto", "cpu", "cuda", "simulated"] = "auto"
    """auto: cuda when the cluster has a GPU, else cpu. simulated: engines without a model, for trials and tests."""
    model: Annotated[ModelSection, Field(default=None)]  # of several models each part has its own
    """The model that is served."""
    models: dict[ModelKey, ModelWithEngines] = Field({})
    """In the place of `model`, and of the pools beside it: several models, each with its pools. Clients say the name,
    unless the model has another one."""
    ray: Ray = Ray()
    """Where the engines run."""
    frontend: FrontendSection = FrontendSection()
    """The HTTP endpoint."""
    prefill: Pools = ()
    """Engines that read prompts: a pool, or a list of pools."""
    decode: Pools = ()
    """Engines that make tokens: a pool, or a list of pools."""
    aggregated: Pools = ()
    """Engines that do both: a pool, or a list of pools."""
    embedding: Pools = ()
    """Engines that make vectors and scores, and no tokens: a pool, or a list of pools."""
    deadlines: Deadlines = Deadlines()
    """Seconds after which a wait ends."""
    routing: Routing = Routing()
    """Where requests go."""
    health: HealthSection = HealthSection()
    """How engines are watched."""
    transfer: Transfer = Transfer()
    """How KV travels."""
    registry: RegistrySection = RegistrySection()
    """Where it is written who is alive."""
    security: Security = Security()
    """Who may use the endpoint."""
    telemetry: Telemetry = Telemetry()
    """What the deployment tells of itself."""

    _key: str = PrivateAttr("")

    @model_validator(mode="before")
    @classmethod
    def _named_by_keys(cls, tree: Any) -> Any:
        models = tree.get("models") if isinstance(tree, dict) else None
        if not isinstance(models, dict):
            return tree
        named = {
            key: {**said, "name": said.get("name") or key} if isinstance(said, dict) and isinstance(key, str) else said
            for key, said in models.items()
        }
        return {**tree, "models": named}

    @model_validator(mode="before")
    @classmethod
    def _empty_is_absent(cls, tree: Any) -> Any:
        """`frontend:` with nothing below it is an empty section."""
        if not isinstance(tree, dict):
            return tree
        return {key: {} if key in MAY_BE_EMPTY and value is None else value for key, value in tree.items()}

    @property
    def key(self) -> str:
        """Which of several models this is a part of; empty where there is one."""
        return self._key

    def parts(self) -> tuple[Deployment, ...]:
        """Each model's own: a deployment of one model, that shares with the others all that is no model's."""
        return tuple(self._part(key, said) for key, said in self.models.items()) or (self,)

    def _part(self, key: str, said: ModelWithEngines) -> Deployment:
        own = {role.value: getattr(said, role.value) for role in ROLES}
        of_model = {name: getattr(said, name) for name in ModelSection.model_fields}
        model = ModelSection.model_construct(said.model_fields_set & of_model.keys(), **of_model)
        part = self.model_copy(update={"model": model, "models": {}, **own})
        part._key = key
        return part

    def at(self, path: str) -> str:
        """Where the YAML says what a part has at `path`."""
        return path_in(self._key, path)

    def pools(self) -> Iterator[tuple[Role, int, Pool]]:
        """Every pool as (role, index in its role, pool), in the order engines are numbered."""
        for role in ROLES:
            for index, pool in enumerate(self.of_role(role)):
                yield role, index, pool

    def of_role(self, role: Role) -> tuple[Pool, ...]:
        pools: tuple[Pool, ...] = getattr(self, role.value)
        return pools

    def path_of(self, role: Role, index: int) -> str:
        """Where messages say that a pool is: `decode`, or `decode.1` where the role has several."""
        return self.at(f"{role}.{index}" if len(self.of_role(role)) > 1 else role.value)
