"""What a frontend is told at its start, and its word when it listens.

Way:   serve -> [FrontendSpec], one JSON line on the frontend's standard input -> disagg/frontend/main.py
"""

from __future__ import annotations

import msgspec

from disagg.coordinator.limits import Limits
from disagg.frontend.key_limits import LimitedKey
from disagg.frontend.tls import TlsSpec
from disagg.policy_names import DEFAULT
from disagg.registry.shared import Shared
from disagg.routing.cost.prior import Prior
from disagg.tokenizer.overrides import Overrides

LISTENING = "listening"  # and where other frontends may ask it, if there are any


class TracesSpec(msgspec.Struct, frozen=True, kw_only=True):
    endpoint: str  # the collector's whole URL for traces
    sample_ratio: float
    headers: dict[str, str]
    service: str  # what the deployment calls itself in them


class ModelSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One model that it serves."""

    path: str
    name: str  # what clients say
    group: str = ""  # of its engines, where there are several models
    prior: Prior = Prior()  # what the policy believes before anything is measured
    block_tokens: int = 0  # of a KV block, in which routing counts what is cached; 0: it does not
    kv_events: bool = True  # hosts are asked what is cached; else that is guessed
    generates: bool = True  # it has engines that make tokens
    embeds: bool = False  # it has some that make vectors
    tool_call_parser: str | None = None  # SGLang's name, or auto
    reasoning_parser: str | None = None
    overrides: Overrides = Overrides()  # over the model's own files
    tokenization: str = "frontend"  # or engine: the engines' hosts have the tokenizer


class FrontendSpec(msgspec.Struct, frozen=True, kw_only=True):
    registry: str  # host:port of the controller's; empty: it is in `shared`
    control: str  # host:port; empty: it is in the registry, as another controller has another one
    host: str
    port: int
    body_limit_bytes: int
    models: tuple[ModelSpec, ...]  # one at least
    number: int
    has_peers: bool = False  # others listen on the same port
    stop_s: float
    limits: Limits
    shared: Shared | None = None
    policy: str = DEFAULT  # as load_policy takes it
    connections_max: int = 10_000
    held_limit_bytes: int = 256 << 20  # of requests that have not come in whole
    simulated: bool = False  # its engines are: every response says so
    refuses_unknown: bool = False  # fields that nobody here knows: a 400, else a header that names them
    api_keys: tuple[str, ...] = ()  # keys travel on standard input alone
    admin_keys: tuple[str, ...] = ()
    limited_keys: tuple[LimitedKey, ...] = ()  # are API keys, too
    open_metrics: bool = False
    says_what_goes_on: bool = True  # in its log (telemetry/pulse.py)
    origins: tuple[str, ...] = ()  # of web pages that may read answers
    origins_age_s: int = 0
    metric_aliases: tuple[str, ...] = ()  # disagg/telemetry/aliases.py
    tls: TlsSpec | None = None
    traces: TracesSpec | None = None  # None: nothing of them is even imported
