"""What the preflight looks at: the pools as their engines will get them, the model, and the nodes.

Way:   tree, or plan + model facts + nodes -> [Subject] -> rules
Out:   plain data. A count that is no count reads as its default: other rules tell that (disagg/config/rules.py)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING, Any

from disagg.config.rules import PoolText
from disagg.engine.arguments import DEVICE_DEFAULTS

if TYPE_CHECKING:
    from disagg.config.cluster_shape import Node, Placement
    from disagg.models.facts import ModelFacts

# All-to-all backends that make expert parallelism span the whole engine, whatever ep_size says (SGLang: _a2a_ep_size).
SPANNING = frozenset({"deepep", "deepep_v2", "flashinfer", "flashinfer_megamoe", "mooncake", "mori", "nixl", "pplx"})


@dataclass(frozen=True, slots=True)
class PoolView:
    """One pool. `arguments`: what it says, over the defaults of the device where that is known."""

    role: str
    path: str
    arguments: Mapping[str, Any]
    env: Mapping[str, str] = field(default_factory=dict)
    replicas: int = 1
    nodes: int = 1
    gpus: float | None = None  # of each node of an engine; None: one a rank

    def at(self, argument: str) -> str:
        return f"{self.path}.engine.{argument}"

    def get(self, argument: str) -> Any:
        return self.arguments.get(argument)

    def count(self, argument: str, default: int = 1) -> int:
        return _count(self.arguments.get(argument), default)

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
        """Over how many ranks the heads of one request are split: attention data parallelism takes from tp_size."""
        split = self.tp // (self.dp * self.cp) if self.is_on("enable_dp_attention") else self.tp // self.cp
        return max(1, split)

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
    nodes: tuple[Node, ...] = ()
    placements: tuple[Placement, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)  # the rest of the configuration, as the tree has it

    def of_role(self, *roles: str) -> Iterator[PoolView]:
        return (pool for pool in self.pools if pool.role in roles)

    @property
    def split(self) -> list[PoolView]:
        """The pools that hand KV to one another."""
        return list(self.of_role("prefill", "decode"))

    def pairs(self) -> Iterator[tuple[PoolView, PoolView]]:
        return product(self.of_role("prefill"), self.of_role("decode"))

    def setting(self, path: str, default: Any = None) -> Any:
        """`transfer.allow_tcp`, for example; the default where it, or a part of its path, is not there."""
        found: Any = self.settings
        for key in path.split("."):
            found = found.get(key) if isinstance(found, Mapping) else None
        return default if found is None else found


def pool_views(texts: list[PoolText], device: str) -> tuple[PoolView, ...]:
    defaults = DEVICE_DEFAULTS.get(device, {})
    return tuple(_view(text, defaults) for text in texts)


def _view(text: PoolText, defaults: Mapping[str, Any]) -> PoolView:
    resources, env = text.pool.get("resources"), text.pool.get("env")
    gpus = resources.get("gpus") if isinstance(resources, dict) else None
    return PoolView(
        role=text.role,
        path=text.path,
        arguments={**defaults, **text.engine},
        env={str(name): str(value) for name, value in env.items()} if isinstance(env, dict) else {},
        replicas=_count(text.pool.get("replicas"), 1),
        nodes=_count(text.pool.get("nodes"), 1),
        gpus=float(gpus) if isinstance(gpus, int | float) and not isinstance(gpus, bool) else None,
    )


def _count(value: Any, default: int) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else default
