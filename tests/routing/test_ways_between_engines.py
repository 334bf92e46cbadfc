"""How long KV takes between two engines that have not met yet: as between others that share as much."""

from __future__ import annotations

import random
import sys
from itertools import product
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # tests share engines.py; they are not a package

from engines import asked, make_engine, make_router

from disagg.errors import LegLost
from disagg.nearness import ELSEWHERE, GPU, NODE, NVLINK, RACK, RAIL, Names, names_of, place_of, shared
from disagg.plane.messages import RankTaken
from disagg.registry.records import EngineRecord, State
from disagg.roles import Role
from disagg.routing.connections import Connections, _Life
from disagg.routing.cost.costs import Costs
from disagg.routing.cost.prior import Prior
from disagg.routing.endpoints import Engine, RankId
from disagg.routing.observations import Transferred
from disagg.routing.policy import Surroundings, load_policy

LABELS = {
    "a": {NVLINK: "n1", RAIL: "l1", RACK: "r1"},
    "b": {NVLINK: "n1", RAIL: "l2", RACK: "r1"},
    "c": {NVLINK: "n2", RAIL: "l2", RACK: "r1"},
    "d": {RACK: "r1"},
    "e": {RACK: "r2"},
}
BYTES = 10**8


def at(node: str, devices: str = "") -> Names:
    return names_of(place_of([node], devices, LABELS))


@pytest.mark.parametrize(
    ("one", "other", "kind"),
    [
        (at("a", "0"), at("a", "0"), GPU),
        (at("a", "0"), at("a", "1"), NODE),
        (at("a", "0"), at("b", "0"), NVLINK),
        (at("b"), at("c"), RAIL),
        (at("a"), at("c"), RACK),
        (at("a"), at("d"), RACK),
        (at("a"), at("e"), ELSEWHERE),
        (at("x"), at("y"), ELSEWHERE),
        (at("x"), at("x"), NODE),
        ((), (), ELSEWHERE),
    ],
)
def test_the_nearest_place_counts_and_what_is_not_known_is_shared_with_nobody(
    one: Names, other: Names, kind: str
) -> None:
    assert shared(one, other) == shared(other, one) == kind


def test_an_engine_over_several_nodes_is_where_all_of_them_are() -> None:
    assert place_of(["a", "b"], "0,1", LABELS) == {NVLINK: "n1", RACK: "r1"}
    assert place_of(["a", "e"], "0,1", LABELS) == {}
    assert place_of(["a", "x"], "0,1", LABELS) == {}


def engine(name: str, place: Names, number: int = 0) -> Engine:
    made = make_engine(f"{name}#1", Role.DECODE if name.startswith("d") else Role.PREFILL, number)
    made.place = place
    return made


class Measured:
    """Costs on a clock of its own, with transfers of one size."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.costs = Costs(Prior(), lambda: self.now_s)

    def moves(self, sender: Engine, receiver: Engine, seconds: float, times: int = 1) -> None:
        ends = RankId(sender.id, sender.life, 0), RankId(receiver.id, receiver.life, 0)
        for _ in range(times):
            self.now_s += 0.1
            self.costs.observe(Transferred(*ends, 1000, BYTES, seconds, shared(sender.place, receiver.place)))

    def s(self, sender: Engine, receiver: Engine) -> float:
        return self.costs.transfer((1.0, BYTES)) * self.costs.ways.of(sender, receiver)


P = {node: engine(f"prefill-{node}", at(node)) for node in LABELS}
D = {node: engine(f"decode-{node}", at(node)) for node in LABELS}


def test_a_way_that_was_not_measured_takes_as_long_as_its_like() -> None:
    seen = Measured()
    for _ in range(60):
        seen.moves(P["a"], D["a"], 0.01)
        seen.moves(P["a"], D["d"], 0.04)
        seen.moves(P["a"], D["e"], 0.4)
    for node in "bcde":  # none of whose ways was
        assert seen.s(P[node], D[node]) == pytest.approx(0.01, rel=0.3), node
    assert seen.s(P["d"], D["c"]) == pytest.approx(0.04, rel=0.3)
    assert seen.s(P["b"], D["e"]) == pytest.approx(0.4, rel=0.3)
    assert seen.costs.ways.of(P["b"], D["a"]) == 1.0, "of NVLink nothing has been measured"


def test_what_a_way_is_itself_counts_beside_what_its_like_are() -> None:
    seen = Measured()
    for _ in range(60):
        seen.moves(P["a"], D["a"], 0.01)
        seen.moves(P["b"], D["e"], 0.1)
        seen.moves(P["c"], D["e"], 0.1)
        seen.moves(P["d"], D["e"], 0.9)
    assert seen.s(P["d"], D["e"]) == pytest.approx(0.9, rel=0.4)
    assert seen.s(P["b"], D["e"]) == pytest.approx(0.1, rel=0.5)
    assert seen.s(P["d"], D["d"]) == pytest.approx(0.01, rel=0.3), "its ways to others are as others' are"


def test_where_all_share_as_much_the_average_is_all_there_is() -> None:
    seen, random_ = Measured(), random.Random(1)
    for _ in range(200):
        seen.moves(P["a"], D["e"], 0.01 * 3 ** random_.uniform(-1, 1))
    assert not seen.costs.ways.differ
    assert seen.costs.ways.of(P["b"], D["e"]) == 1.0


def test_what_has_not_been_measured_for_long_counts_as_the_average_again() -> None:
    seen = Measured()
    for _ in range(60):
        seen.moves(P["a"], D["a"], 0.01)
        seen.moves(P["a"], D["e"], 0.4)
    assert seen.costs.ways.of(P["b"], D["e"]) > 2
    seen.now_s += 600
    seen.costs.age()
    assert not seen.costs.ways.differ
    assert seen.costs.ways.of(P["b"], D["e"]) == 1.0


def test_a_near_decode_is_found_behind_many_that_are_a_little_cheaper() -> None:
    """Of 40 the one on the prefill's own node is the fullest, and not among the cheapest."""
    prefill, near = engine("prefill-0", at("a")), engine("decode-39", at("a"), 39)
    far = [engine(f"decode-{number}", at("e"), number) for number in range(39)]
    policy = load_policy("predicted", Surroundings(random.Random(1)))
    router = make_router(prefill, *far, near, policy=policy)
    for endpoint in list(router.endpoints.of(Role.DECODE)):
        if endpoint.life == near.life:
            router.endpoints.report(endpoint, RankTaken(1, 100), 1.0)
    for _, (decode, seconds) in product(range(30), ((near, 0.01), (far[0], 2.0))):
        ends = prefill.endpoints[0].id, decode.endpoints[0].id
        kind = shared(prefill.place, decode.place)
        policy.observe(Transferred(*ends, 1000, BYTES, seconds, kind))  # type: ignore[attr-defined]
    reservation = router.pick(asked(prompt_tokens=1000, new_tokens=10))
    assert reservation is not None
    assert reservation.pair.decode.life == near.life


async def test_a_frontend_takes_it_from_the_engines_record() -> None:
    place = place_of(["a"], "0", LABELS)
    record = EngineRecord(id="decode-0", role=Role.DECODE, state=State.READY, plane="127.0.0.1:1", place=place)
    connections = Connections(b"s" * 32)
    made: list[Engine] = []
    connections.endpoints.open_slots = made.append  # type: ignore[method-assign]
    connections.endpoints.close_slots = lambda _engine: None  # type: ignore[method-assign]
    with pytest.raises(LegLost):  # nobody listens there
        await connections._try_to_connect(_Life(record, 0))
    assert made[0].place == ("gpu a/0", "node a", "nvlink n1", "rail l1", "rack r1")
