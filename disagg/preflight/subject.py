"""What the preflight looks at: the pools as their engines will get them, the model, and the nodes.

Way:   tree, or plan + model facts + nodes -> [Subject] -> rules
Out:   plain data. A value that should be a count and is not reads as its default; disagg/config/rules.py reports it
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from disagg.config.rules import PoolText, count
from disagg.errors import Problem
from disagg.planning.memory import SPANNING
from disagg.preflight.node_facts import MeasuredLane, NodeFacts
from disagg.role_table import ROLES
from disagg.roles import Role
from disagg.sglang.arguments import DEVICE_DEFAULTS

if TYPE_CHECKING:
    from disagg.models.facts import ModelFacts
    from disagg.planning.gpu_kinds import GpuKind
    from disagg.planning.placement import PlacedMember
    from disagg.planning.plan import EnginePlan


@dataclass(frozen=True, slots=True)
class PoolView:
    """One pool. `arguments`: what it says, over the defaults of the device where that is known."""

    role: Role
    path: str
    arguments: Mapping[str, Any]
    env: Mapping[str, str] = field(default_factory=dict)
    engines: tuple[str, ...] = ()  # their ids; empty before there is a plan
    gpu_share: float = 1.0  # of the GPU that an engine shares with others

    def at(self, argument: str) -> str:
        return f"{self.path}.engine.{argument}"

    def get(self, argument: str) -> Any:
        return self.arguments.get(argument)

    def count(self, argument: str, default: int = 1) -> int:
        return count(self.arguments.get(argument), default)

    def is_on(self, argument: str) -> bool:
        return self.arguments.get(argument) is True

    @property
    def tp(self) -> int:
        return self.count("tp_size")

    @property
    def pp(self) -> int:
        return self.count("pp_size")

    @property
    def dp(self) -> int:
        return self.count("dp_size")

    @property
    def cp(self) -> int:
        return self.count("attn_cp_size")

    @property
    def attention_tp(self) -> int:
        """The number of ranks that share the heads of one request: tp_size, less what attention dp and cp divide
        off."""
        return max(1, self.tp // (self.attention_dp * self.cp))

    @property
    def attention_dp(self) -> int:
        """Among how many groups of ranks the requests are shared out, each with a batch and a chunk of its own."""
        return self.dp if self.is_on("enable_dp_attention") else 1

    @property
    def a2a(self) -> str:
        backend = self.arguments.get("moe_a2a_backend")
        return backend if isinstance(backend, str) else "none"

    @property
    def ep(self) -> int:
        return self.tp if self.a2a in SPANNING else self.count("ep_size")


@dataclass(frozen=True, slots=True)
class Subject:
    """Everything a rule may look at. What is not known is None or empty, and rules that need it find nothing."""

    pools: tuple[PoolView, ...]
    device: str = "auto"
    model: ModelFacts | None = None
    nodes: tuple[NodeFacts, ...] = ()
    members: tuple[PlacedMember, ...] = ()  # empty: not known where engines will go
    beside: tuple[PlacedMember, ...] = ()  # of other models' engines, on the same nodes
    unplaced: tuple[Problem, ...] = ()
    lanes: tuple[MeasuredLane, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)  # the rest of the configuration, as the tree has it

    def of_role(self, *roles: str) -> Iterator[PoolView]:
        return (pool for pool in self.pools if pool.role in roles)

    @property
    def split(self) -> list[PoolView]:
        """The pools that hand KV to one another."""
        return [pool for pool in self.pools if ROLES[pool.role].partner]

    def pairs(self) -> Iterator[tuple[PoolView, PoolView]]:
        """The pools at both ends of a transfer, its sender first."""
        senders = ((pool, ROLES[pool.role].sends_kv_to) for pool in self.pools)
        return ((sender, taker) for sender, role in senders if role for taker in self.of_role(role))

    def placed(self, pool: PoolView) -> dict[str, list[tuple[NodeFacts, PlacedMember]]]:
        """The nodes of each engine of this pool, with its member there. Where placement is not known, none."""
        by_name = {node.name: node for node in self.nodes}
        engines: dict[str, list[tuple[NodeFacts, PlacedMember]]] = {}
        for member in self.members:
            if member.engine in pool.engines:
                engines.setdefault(member.engine, []).append((by_name[member.node], member))
        return engines

    def smallest_gpu(self, pool: PoolView) -> GpuKind | None:
        places = [place for places in self.placed(pool).values() for place in places]
        kinds = {node.shape.gpu for node, member in places if node.shape.gpu and member.gpus}
        return min(kinds, key=lambda kind: kind.memory_bytes, default=None)

    @property
    def used_nodes(self) -> list[NodeFacts]:
        """Those that will hold an engine; all of them where placement is not known."""
        used = {member.node for member in self.members}
        return [node for node in self.nodes if not used or node.name in used]

    @property
    def said_lanes(self) -> set[str]:
        """transfer.lanes; empty: any will do."""
        lanes = self.setting("transfer.lanes")
        return set(map(str, lanes)) if isinstance(lanes, list | tuple) else set()

    def setting(self, path: str, default: Any = None) -> Any:
        """`transfer.allow_tcp`, for example; the default where it, or a part of its path, is not there."""
        found: Any = self.settings
        for key in path.split("."):
            found = found.get(key) if isinstance(found, Mapping) else None
        return default if found is None else found


def pool_views(texts: Iterable[PoolText], device: str, engines: Iterable[EnginePlan] = ()) -> tuple[PoolView, ...]:
    defaults = DEVICE_DEFAULTS.get(device, {})
    ids: dict[tuple[str, int], list[str]] = {}
    for engine in engines:
        ids.setdefault((engine.role.value, engine.pool_index), []).append(engine.id)
    counted: Counter[str] = Counter()
    views = []
    for text in texts:
        views.append(_view(text, defaults, tuple(ids.get((text.role, counted[text.role]), ()))))
        counted[text.role] += 1
    return tuple(views)


def _view(text: PoolText, defaults: Mapping[str, Any], engines: tuple[str, ...]) -> PoolView:
    env = text.pool.get("env")
    return PoolView(
        role=text.role,
        path=text.path,
        arguments={**defaults, **ROLES[text.role].defaults, **text.engine},
        env={str(name): str(value) for name, value in env.items()} if isinstance(env, dict) else {},
        engines=engines,
        gpu_share=_share(text.pool.get("resources")),
    )


def _share(resources: Any) -> float:
    gpus = resources.get("gpus") if isinstance(resources, dict) else None
    return gpus if isinstance(gpus, int | float) and 0 < gpus < 1 else 1.0
