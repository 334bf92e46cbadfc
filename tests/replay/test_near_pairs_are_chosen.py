"""Where KV takes longer between engines that share less, near pairs are chosen, and most ways need not be measured."""

from __future__ import annotations

from array import array
from random import Random

import pytest

from disagg.nearness import ELSEWHERE, NODE, RACK, names_of, shared
from disagg.replay.virtual.served import Served
from disagg.replay.virtual.world import Pool, World
from disagg.roles import Role
from disagg.routing.policies.predicted import Predicted
from disagg.simulated_engine.model import Model

ENGINES, NODES_OF_A_RACK = 16, 2  # of each role; one of each on a node
REQUESTS = 400  # of 256 ways
SIZES = {"kv_tokens": 400_000, "page_size": 64, "chunk_tokens": 8192, "kv_bytes_per_token": 100_000}
SLOWER = {NODE: 1.0, RACK: 4.0, ELSEWHERE: 16.0}
NODES = [{NODE: str(node), RACK: str(node // NODES_OF_A_RACK)} for node in range(ENGINES)]


def served_where(*, is_known: bool, slower: dict[str, float], seed: int) -> tuple[dict[str, int], float]:
    """How many requests of the second half went over ways of each kind, and their mean TTFT in seconds."""
    pools = [Pool(Model(role=role, **SIZES), ENGINES) for role in (Role.PREFILL, Role.DECODE)]  # type: ignore[arg-type]
    named = [names_of(place) for place in NODES] * 2
    policy = Predicted()
    world = World(pools, [policy], seed, places=named, slower=slower)
    if not is_known:
        for engine in world.frontends[0]._engines.values():
            engine.place = ()
    random, at_s, requests = Random(seed), 0.0, list[Served]()
    for number in range(REQUESTS):
        at_s += random.expovariate(20.0)
        tokens, first = random.randrange(1000, 4000), number << 16
        path = array("Q", range(first + 1, first + 1 + tokens // 64))
        requests.append(Served(number, at_s, tokens, 50, 50, path, ""))
    late = world.run(requests).served[REQUESTS // 2 :]
    kinds = dict.fromkeys(slower or SLOWER, 0)
    for each in late:
        assert each.read_on is not None
        assert each.decode_on is not None
        kinds[shared(*(world._host_of[end.life].place for end in (each.read_on, each.decode_on)))] += 1
    return kinds, sum(each.first_s - each.due_s for each in late) / len(late)


@pytest.mark.parametrize("seed", range(3))
def test_most_requests_go_to_near_pairs_and_answer_sooner_than_where_places_are_not_known(seed: int) -> None:
    known, known_s = served_where(is_known=True, slower=SLOWER, seed=seed)
    unknown, unknown_s = served_where(is_known=False, slower=SLOWER, seed=seed)
    assert known[NODE] > 0.7 * sum(known.values())
    assert known[NODE] > 2 * unknown[NODE]
    assert known_s < 0.9 * unknown_s


def test_where_nearness_makes_no_difference_it_decides_nothing() -> None:
    kinds, _ = served_where(is_known=True, slower=dict.fromkeys(SLOWER, 1.0), seed=1)
    assert kinds[NODE] < 0.3 * sum(kinds.values())
