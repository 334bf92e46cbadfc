"""What all engines of a deployment share, and what one incarnation's host is told.

Way:   supervisor -> [host_spec] -> EngineNode -> host
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from disagg.cluster.engine_node import Ground
from disagg.config.schema import Deadlines
from disagg.errors import StartError
from disagg.folders import log_folder, run_folder
from disagg.host_spec import HostSpec, TextSpec
from disagg.planning.plan import EnginePlan
from disagg.role_table import ROLES
from disagg.sglang.arguments import Ports


@dataclass(frozen=True)
class OfModel:
    """What engines of one of several models share."""

    model_path: str
    text: TextSpec | None = None
    block_tokens: int = 0


@dataclass(frozen=True)
class Setting:
    deployment: str
    device: str
    model_path: str
    secret: str
    deadlines: Deadlines
    python_path: list[str]
    address: str  # what engines listen on; empty: their node's address in the Ray cluster
    text: TextSpec | None = None  # of all hosts
    labels: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # of nodes, by address (disagg/nearness.py)
    block_tokens: int = 0  # of a KV block, in which hosts tell what is cached; 0: they do not
    of_models: dict[str, OfModel] = field(default_factory=dict)  # of several, which come and go (models.py)
    outlives: str = ""  # the deployment's name, where actors and places outlive their controller (detached/)

    def of(self, group: str) -> OfModel:
        """Raises StartError of a model that is not known here."""
        if not group:
            return OfModel(self.model_path, self.text, self.block_tokens)
        if group not in self.of_models:
            raise StartError(f"model {group}", "it is not here, or not any more", "see the log of the controller")
        return self.of_models[group]


def host_spec(plan: EnginePlan, setting: Setting, incarnation: int, ground: Ground) -> tuple[HostSpec, str]:
    """(what the incarnation's host is told, host:port of its bootstrap server; empty where it has none).
    Raises StartError."""
    address, ports, of_model = ground.address, Ports.from_first(ground.first_port), setting.of(plan.group)
    spec = HostSpec(
        engine_id=plan.id,
        incarnation=incarnation,
        role=plan.role,
        arguments=plan.arguments(device=setting.device, model_path=of_model.model_path, host=address, ports=ports),
        environment=plan.environment(device=setting.device, deadlines=setting.deadlines),
        plane_host=address,
        plane_port=ports.plane,
        log_path=str(log_folder(setting.deployment) / f"{plan.id}.log"),
        scratch=str(run_folder(setting.deployment) / f"{plan.id}-{incarnation}"),
        fork=ground.fork,
        is_simulated=setting.device == "simulated",
        text=of_model.text,
        block_tokens=of_model.block_tokens if ROLES[plan.role].caches_prompts(plan.engine) else 0,
    )
    return spec, ROLES[plan.role].bootstrap_address(address, ports.bootstrap)
