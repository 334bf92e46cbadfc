"""Makes the placement groups of each case on a Ray of some nodes with 8 logical GPUs each, in the order they are given,
and prints which engine went where (null: it has no place), as JSON. Starts no engine. Arguments: NODES CASES
"""

from __future__ import annotations

import json
import sys
import time

import ray
from ray.cluster_utils import Cluster
from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group

PLACE_S, FREE_S, SETTLED_S = 5, 20, 1
NODES = int(sys.argv[1])
NODE = {"num_cpus": 64, "num_gpus": 8, "object_store_memory": 80 << 20}


def main(cases: list[list[tuple[str, int, dict[str, float]]]]) -> None:
    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    for _ in range(NODES - 1):
        cluster.add_node(**NODE)
    ray.init(address=cluster.address, logging_level="error")
    cluster.wait_for_nodes()
    print(json.dumps([placed(engines) for engines in cases]))
    ray.shutdown()
    cluster.shutdown()


def placed(engines: list[tuple[str, int, dict[str, float]]]) -> dict[str, list[str] | None]:
    groups = {}
    for name, nodes, bundle in engines:
        groups[name] = placement_group([bundle] * nodes, strategy="STRICT_SPREAD" if nodes > 1 else "STRICT_PACK")
    found: dict[str, list[str] | None] = {}
    for name, group in groups.items():
        there = group.wait(PLACE_S)
        found[name] = list(placement_group_table(group)["bundles_to_node_id"].values()) if there else None
    for group in groups.values():
        remove_placement_group(group)
    until_all_is_free()
    return found


def until_all_is_free() -> None:
    """Ray places the next groups by what its nodes last reported."""
    ends_s = time.monotonic() + FREE_S
    while ray.available_resources().get("GPU") != NODES * NODE["num_gpus"]:
        assert time.monotonic() < ends_s, ray.available_resources()
        time.sleep(0.1)
    time.sleep(SETTLED_S)


main(json.loads(sys.argv[2]))
