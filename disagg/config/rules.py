"""Rules between keys of one file. (disagg/sglang/owned_arguments.py lists the SGLang arguments a pool may not set.)

Way:   tree -> Deployment + [rules] + SGLang's arguments -> ConfigError with all problems, or none
In:    the tree, not the Deployment, so that a rule is checked also where another part of the file is wrong
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from disagg.config.model_texts import path_in
from disagg.config.schema import Deployment, spelled
from disagg.errors import Problem
from disagg.plane.messages import READ_BYTES_MAX
from disagg.role_table import ROLES
from disagg.roles import Role
from disagg.sampling import problems_of
from disagg.sglang.owned_arguments import OWNED_ARGUMENTS
from disagg.sglang.versions import neutral, neutral_name

SIZES = ("tp_size", "pp_size", "dp_size")  # the plan counts with them, whether sglang is there to check or not
RANKS_MAX = 16_384  # of an engine: 256 nodes of 64 GPUs, the most that `nodes` and a described cluster allow


class PoolText(NamedTuple):
    """One pool as it is written; `path` as the YAML has it. `pool` and `engine` are mappings, whatever was there."""

    role: Role
    path: str
    pool: dict[str, Any]
    engine: dict[str, Any]


def count(value: Any, default: int = 1) -> int:
    """A whole number above 0, or the default where the tree holds anything else. (The schema and the rules report
    that.)"""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else default


def pool_texts(tree: dict[str, Any], key: str = "") -> list[PoolText]:
    """Every pool that is at least a mapping. (The schema refuses the others.) `key`: of one of several models."""
    found = []
    for role in ROLES:
        pools = tree.get(role)
        for index, pool in enumerate(pools if isinstance(pools, list) else [pools]):
            if isinstance(pool, dict):
                engine = pool.get("engine")
                said = {spelled(name): value for name, value in engine.items()} if isinstance(engine, dict) else {}
                path = f"{role}.{index}" if isinstance(pools, list) else role
                found.append(PoolText(role, path_in(key, path), pool, neutral(said)))
    return found


def texts_of(deployment: Deployment) -> list[PoolText]:
    """The same of a deployment that was read."""
    pools = deployment.pools()
    return [PoolText(role, deployment.path_of(role, at), pool.model_dump(), pool.engine) for role, at, pool in pools]


def check_rules(tree: dict[str, Any], meant: list[PoolText], key: str = "") -> list[Problem]:
    """`meant`: the pools with obvious mistakes mended (engine_arguments.as_meant). Rules between two keys read these:
    in `tree` a misspelled name would count as absent, and the advice would be about its default. `key`: as
    pool_texts has it."""
    pools = pool_texts(tree, key)
    return [
        *_roles_make_a_deployment(tree),
        *_names_differ(pools),
        *_bodies_go_to_hosts(tree),
        *(problem for pool in meant for problem in gpus_fit(pool, tree.get("device"))),
        *(problem for pool in pools for rule in ARGUMENT_RULES for problem in rule(pool)),
        *(problem for pool in meant for rule in POOL_RULES for problem in rule(pool)),
    ]


def gpus_fit(pool: PoolText, device: Any) -> Iterator[Problem]:
    """Called here with what the file says, and again by the plan once `device: auto` is resolved."""
    path, gpus = f"{pool.path}.resources.gpus", _gpus(pool)
    if device in ("cpu", "simulated") and gpus:
        yield Problem(path, f"is {gpus:g}, but the deployment runs on {device}", "leave it out, or say device: cuda")
    if device == "cuda" and gpus == 0:
        yield Problem(path, "is 0, but the deployment runs on cuda", "leave it out, or say device: cpu")
    if device == "cuda" and pool.pool.get("pace_ms") is not None and (gpus is None or gpus >= 1):
        what = "is said, but the engine has GPUs of its own, and no prefill engine to leave them to"
        yield Problem(f"{pool.path}.pace_ms", what, f"leave it out, or say {path} below 1")


def _gpus(pool: PoolText) -> float | None:
    resources = pool.pool.get("resources")
    gpus = resources.get("gpus") if isinstance(resources, dict) else None
    return gpus if isinstance(gpus, int | float) and not isinstance(gpus, bool) and gpus >= 0 else None


def _roles_make_a_deployment(tree: dict[str, Any]) -> Iterator[Problem]:
    said = [role for role in ROLES if tree.get(role) not in (None, [])]
    split = [role for role in _movers_of_kv() if role in said]
    if not said:
        yield Problem("configuration", "has no engines", f"add {', or '.join(_ways_to_serve())}")
    for there in split:
        missing = ROLES[there].partner
        if missing and missing not in said:
            why, would_do = ROLES[there].why_partner, f"add {missing}, or say aggregated in place of {there}"
            yield Problem(missing, f"is missing: {why}", would_do)


def _ways_to_serve() -> list[str]:
    """A role that serves a request alone, or two that do together."""
    senders = {role: ROLES[role].sends_kv_to for role in ROLES if not ROLES[role].takes_kv_from}
    return [f"{role} and {taker}" if taker else role for role, taker in senders.items()]


def _movers_of_kv() -> list[Role]:
    return [role for role in ROLES if ROLES[role].partner]


def _listed(roles: Iterable[Role]) -> str:
    return " and ".join(roles)


def _names_differ(pools: list[PoolText]) -> Iterator[Problem]:
    first: dict[str, str] = {}
    for pool in pools:
        name = pool.pool.get("name")
        if isinstance(name, str) and first.setdefault(name, pool.path) != pool.path:
            yield Problem(f"{pool.path}.name", f"{name!r} is the name of {first[name]} too", "give each pool its own")


def _bodies_go_to_hosts(tree: dict[str, Any]) -> Iterator[Problem]:
    model, frontend = tree.get("model"), tree.get("frontend")
    if not isinstance(model, dict) or not isinstance(frontend, dict) or model.get("tokenization") != "engine":
        return
    limit, most = count(frontend.get("body_limit_mib")), READ_BYTES_MAX >> 20
    if limit > most:
        what = f"is {limit}, and with model.tokenization: engine a body goes to an engine's host in one piece"
        yield Problem("frontend.body_limit_mib", what, f"say {most} at most, or model.tokenization: frontend")


def _not_the_users(pool: PoolText) -> Iterator[Problem]:
    for argument in pool.engine:
        if argument in OWNED_ARGUMENTS:
            why, would_do = OWNED_ARGUMENTS[argument]
            yield Problem(f"{pool.path}.engine.{argument}", f"is not set here: {why}", would_do)


def _said_once(pool: PoolText) -> Iterator[Problem]:
    written = pool.pool.get("engine")
    if isinstance(written, dict):
        for argument in pool.engine:
            spellings = [str(name) for name in written if neutral_name(spelled(name)) == argument]
            if len(spellings) > 1:
                what = f"said {len(spellings)} times, as {' and '.join(spellings)}"
                yield Problem(f"{pool.path}.engine.{argument}", what, "keep one")


def _sizes_are_counts(pool: PoolText) -> Iterator[Problem]:
    for argument in SIZES:
        size = pool.engine.get(argument, 1)
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            would_do = "take the quotes off" if isinstance(size, str) and size.isdecimal() else "say 1"
            yield Problem(f"{pool.path}.engine.{argument}", f"must be a whole number from 1, is {size!r:.80}", would_do)
        elif size > RANKS_MAX:
            yield Problem(f"{pool.path}.engine.{argument}", f"is {size!r:.80}, more than {RANKS_MAX}", "say fewer")
    tp, pp = _size(pool, "tp_size"), _size(pool, "pp_size")
    if max(tp, pp) <= RANKS_MAX < tp * pp:
        what = f"is {tp}, and with pp_size {pp} an engine has {tp * pp} ranks"
        yield Problem(f"{pool.path}.engine.tp_size", what, f"stay below {RANKS_MAX} ranks an engine, and say replicas")


def _nodes_share_the_ranks(pool: PoolText) -> Iterator[Problem]:
    nodes, tp, pp = count(pool.pool.get("nodes")), _size(pool, "tp_size"), _size(pool, "pp_size")
    simulated = _size(pool, "ranks")
    if tp * pp * simulated % nodes:
        what = f"is {nodes}, and tp_size {tp} * pp_size {pp} ranks cannot be shared out evenly among them"
        yield Problem(f"{pool.path}.nodes", what, f"make tp_size * pp_size a multiple of {nodes}")


def _gpus_of_all_ranks(pool: PoolText) -> Iterator[Problem]:
    gpus, tp, pp, nodes = _gpus(pool), _size(pool, "tp_size"), _size(pool, "pp_size"), count(pool.pool.get("nodes"))
    here = tp * pp // nodes
    if gpus and tp * pp > 1 and tp * pp % nodes == 0 and gpus != here:
        among = f" on {nodes} nodes" if nodes > 1 else ""
        what = f"is {gpus:g}, but tp_size {tp} * pp_size {pp} ranks{among} need a GPU each"
        yield Problem(f"{pool.path}.resources.gpus", what, f"say {here}, or leave it out")


def _kv_goes_over_nixl(pool: PoolText) -> Iterator[Problem]:
    """SGLang asserts Mooncake for this one, after the model's configuration is read (arg_groups/kv_cache_hook.py)."""
    if ROLES[pool.role].partner and pool.engine.get("enable_unified_memory"):
        what = "SGLang moves a unified memory pool over Mooncake only, and KV here goes over NIXL"
        yield Problem(
            f"{pool.path}.engine.enable_unified_memory", what, f"leave it out on {_listed(_movers_of_kv())} pools"
        )


def _one_rank_embeds(pool: PoolText) -> Iterator[Problem]:
    """SGLang's requests for vectors name no rank, so it would pick one that routing and the ledger do not know."""
    ranks = _size(pool, "dp_size")
    if ROLES[pool.role].embeds and ranks > 1:
        what = f"is {ranks}, and SGLang lets nobody choose the rank of a request for a vector"
        yield Problem(f"{pool.path}.engine.dp_size", what, f"leave it out, and say replicas: {ranks}")


def _only_some_are_paced(pool: PoolText) -> Iterator[Problem]:
    if not ROLES[pool.role].is_paced and pool.pool.get("pace_ms") is not None:
        paced = _listed(role for role in ROLES if ROLES[role].is_paced)
        what = f"is of {paced} engines: it spaces out their steps"
        yield Problem(f"{pool.path}.pace_ms", what, f"leave it out, or say it under {paced}")


def _attention_groups_said_once(pool: PoolText) -> Iterator[Problem]:
    """`neutral` has folded an attn_dp_size that stands alone."""
    groups = pool.engine.get("attn_dp_size")
    if "attn_dp_size" not in pool.engine:
        return
    if not isinstance(groups, int) or isinstance(groups, bool) or groups < 1:
        yield Problem(f"{pool.path}.engine.attn_dp_size", f"must be a whole number from 1, is {groups!r:.80}", "say 1")
    else:
        what = f"is {groups} beside dp_size or enable_dp_attention: SGLang would multiply or refuse the two"
        yield Problem(f"{pool.path}.engine.attn_dp_size", what, "say attn_dp_size alone, or the other two")


def _size(pool: PoolText, argument: str) -> int:
    return count(pool.engine.get(argument))


def _sampling_stays_finite(pool: PoolText) -> Iterator[Problem]:
    """Checks the operator's values for every request against the same table as a client's own values."""
    preferred = pool.engine.get("preferred_sampling_params")
    for name, what in problems_of(preferred) if isinstance(preferred, dict) else ():
        here = f"{pool.path}.engine.preferred_sampling_params.{name}"
        yield Problem(here, what, "say a value that a request may carry, or leave it out")


PoolRule = Callable[[PoolText], Iterator[Problem]]

ARGUMENT_RULES: tuple[PoolRule, ...] = (_not_the_users, _said_once, _sizes_are_counts, _attention_groups_said_once)
POOL_RULES: tuple[PoolRule, ...] = (
    _nodes_share_the_ranks,
    _gpus_of_all_ranks,
    _kv_goes_over_nixl,
    _one_rank_embeds,
    _only_some_are_paced,
    _sampling_stays_finite,
)
