"""From a YAML of `device: simulated` to what runs in virtual time.

Way:   [pools_of] a Deployment -> Pools; [served_by] a Plan -> requests that a World serves
Fails: ConfigError where the deployment is not simulated, or its pools cannot be replayed on
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from disagg.config.schema import Deployment
from disagg.errors import ConfigError, Problem
from disagg.replay.traces.trace import NOBODY
from disagg.replay.virtual.served import Served
from disagg.replay.virtual.world import Follower, Pool
from disagg.replay.workload import Plan
from disagg.role_table import ROLES
from disagg.simulated_engine.model import Model

KV_BLOCK_TOKENS_MIN = 64


def pools_of(deployment: Deployment) -> list[Pool]:
    """Raises ConfigError."""
    if deployment.device != "simulated":
        would_do = "say `device: simulated`; `disagg bench step-times` writes such a file"
        raise ConfigError(deployment.name, (Problem("device", f"is {deployment.device}", would_do),))
    if deployment.models:
        what = f"has {len(deployment.models)} models, and a trace is replayed on one"
        raise ConfigError(deployment.name, (Problem("models", what, "write a file with the one to be replayed on"),))
    pools = [
        Pool(Model(role=role, **pool.engine), pool.replicas)
        for role, _, pool in deployment.pools()
        if not ROLES[role].embeds
    ]
    if not pools:
        raise ConfigError(deployment.name, (Problem("pools", "make no tokens", "a trace needs engines that do"),))
    if len({pool.model.cache_block_tokens for pool in pools if ROLES[pool.model.role].reads_prompts}) > 1:
        what = "cache_block_tokens differs between pools that read prompts"
        raise ConfigError(deployment.name, (Problem("engine", what, "say the same in each"),))
    return pools


def kv_block_tokens_of(pools: Sequence[Pool]) -> int:
    """What prompts are cut into for routing and caching."""
    cached = (pool.model.cache_block_tokens for pool in pools if ROLES[pool.model.role].reads_prompts)
    return next(cached, 0) or KV_BLOCK_TOKENS_MIN


def request_tokens_max(pools: Sequence[Pool]) -> int:
    """Prompt and answer that every rank can hold."""
    return min(pool.model.kv_tokens // pool.model.page_size * pool.model.page_size for pool in pools)


def served_by(plan: Plan, max_tokens: int) -> tuple[list[Served], Mapping[int, Sequence[Follower]]]:
    """The requests that come by themselves, and those that come after others. `max_tokens`: what clients allow."""
    arrivals: list[Served] = []
    followers: dict[int, list[Follower]] = defaultdict(list)
    for each in plan.requests:
        served = Served(
            each.number,
            each.at_s,
            each.prompt_tokens,
            each.output_tokens,
            max(max_tokens, each.output_tokens),
            each.path,
            each.session,
        )
        if each.after == NOBODY:
            arrivals.append(served)
        else:
            followers[each.after].append(Follower(served, each.at_s))
    return arrivals, followers
