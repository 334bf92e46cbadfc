"""What `routing.policy` may say in short, and where those classes are."""

from __future__ import annotations

SHIPPED = {
    "predicted": "disagg.routing.policies.predicted:Predicted",
    "least_loaded": "disagg.routing.policies.least_loaded:LeastLoaded",
    "round_robin": "disagg.routing.policies.round_robin:RoundRobin",
    "random": "disagg.routing.policies.at_random:AtRandom",
    "power_of_two": "disagg.routing.policies.power_of_two:PowerOfTwo",
    "session": "disagg.routing.policies.session:Session",
    "dynamo_kv": "disagg.routing.policies.dynamo_kv:DynamoKv",
    "cache_aware": "disagg.routing.policies.cache_aware:CacheAware",
    "length_buckets": "disagg.routing.policies.length_buckets:LengthBuckets",
    "prefix_filter": "disagg.routing.policies.prefix_filter:PrefixFilter",
}
DEFAULT, LEAST_LOADED = "predicted", "least_loaded"
READS_NO_PREFIXES = frozenset({LEAST_LOADED, "round_robin", "random", "power_of_two"})


def reads_prefixes(policy: str) -> bool:
    """Whether it asks what engines have cached. `policy`: as load_policy takes it. One's own may."""
    names = [side.partition("=")[2] or side for side in policy.split(",")]
    return not READS_NO_PREFIXES.issuperset(names)
