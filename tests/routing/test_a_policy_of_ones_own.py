"""`routing.policy` names a class in a file of one's own; one that fails costs no request."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # tests share engines.py; they are not a package

from engines import asked, make_engine, make_router, split
from short_prompts import ByLength, ShortPrompts

from disagg.config.schema import Routing
from disagg.errors import StartError
from disagg.plane.ledger import Capacity
from disagg.policy_names import reads_prefixes
from disagg.registry.met import Met
from disagg.roles import Role
from disagg.routing.endpoints import Pair
from disagg.routing.load import Endpoints
from disagg.routing.policies.least_loaded import LeastLoaded, Weighed
from disagg.routing.policies.predicted import Predicted
from disagg.routing.policy import load_policy
from disagg.routing.router import PolicyFailed
from disagg.routing.view import Choice, Forecast, RoutingView

WEIGHED = Weighed(0, 0, 0)


def test_short_prompts_to_aggregated_engines_and_long_ones_to_pairs_beside_them() -> None:
    together = make_engine("together-0#1", Role.AGGREGATED, 9, capacity=Capacity(2, 1 << 20, 1))
    router = make_router(*split(1, 1), together, policy=load_policy("short_prompts:ShortPrompts"))
    short, long = router.pick(asked(prompt_tokens=10)), router.pick(asked(prompt_tokens=1000))
    assert short
    assert long
    assert short.pair.name == "together-0#1/0"
    assert short.reason == ByLength(10, True)
    assert long.pair.name == "prefill-0#1/0 + decode-0#1/0"
    assert long.reason == ByLength(1000, False)
    assert router.pick(asked(prompt_tokens=10))
    third = router.pick(asked(prompt_tokens=10))
    assert third
    assert third.pair.prefill, "the aggregated engine is full: a pair takes it"


def test_a_policy_sees_the_request() -> None:
    seen: list[RoutingView] = []

    class Looks(LeastLoaded):
        def choose(self, request: RoutingView, endpoints: Endpoints) -> Choice | None:
            seen.append(request)
            return super().choose(request, endpoints)

    request = asked(
        prompt_ids=[1, 2, 3], emitted_ids=[4], deadline_s=7.0, session="s", model="m", adapter="a", salt="n", priority=2
    )
    assert make_router(*split(1, 1), policy=Looks()).pick(request)
    assert seen == [request]
    assert seen[0].token_ids == [1, 2, 3, 4]


def test_the_default_of_the_configuration_is_predicted_and_a_side_that_is_not_named_goes_by_load() -> None:
    assert isinstance(load_policy(str(Routing().policy)), Predicted)
    nothing = load_policy(str(Routing.model_validate({"policy": {}}).policy))
    assert isinstance(nothing, LeastLoaded)
    assert not reads_prefixes(str(Routing.model_validate({"policy": {}}).policy))


@pytest.mark.parametrize("path", ["nowhere:Policy", "short_prompts:Nothing", "short_prompts:ByLength", "pathlib:Path"])
def test_a_path_that_names_no_policy_is_refused_with_what_would_do(path: str) -> None:
    with pytest.raises(StartError, match=r"routing\.policy.*least_loaded"):
        load_policy(path)


@pytest.mark.parametrize(
    "named",
    [
        *("prefil=random", "embedding=random", "=random", "prefill=", "prefill=random,", "prefill=random,decode"),
        *("prefill=random,prefill=session", "prefill=random;decode=random"),
    ],
)
def test_sides_that_are_none_or_come_twice_are_refused_with_what_would_do(named: str) -> None:
    with pytest.raises(StartError, match=r"routing\.policy: .*(say prefill=NAME or decode=NAME|cannot be loaded)"):
        load_policy(named)


def test_a_file_that_fails_as_it_is_imported_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "fails_at_import.py").write_text("1 / 0")
    with pytest.raises(StartError, match=r"fails_at_import:Mine cannot be loaded: ZeroDivisionError"):
        load_policy("fails_at_import:Mine")


class Broken:
    def choose(self, request: RoutingView, endpoints: Endpoints) -> Choice | None:
        raise KeyError(request.session)


class Stubborn:
    """Takes the first of each, whether there is room or not."""

    def choose(self, request: RoutingView, endpoints: Endpoints) -> Choice | None:
        prefill, decode = (
            min(endpoints.of(role), key=lambda e: e.engine.number) for role in (Role.PREFILL, Role.DECODE)
        )
        return Choice(Pair(prefill, decode), WEIGHED)


def test_where_a_policy_raises_least_loaded_chooses_and_the_log_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    router = make_router(*split(2, 2), policy=Broken())
    with caplog.at_level(logging.ERROR):
        reservations = [router.pick(asked(session="s7")) for _ in range(3)]
    assert all(each and each.reason == PolicyFailed("Broken", "KeyError: 's7'") for each in reservations)
    assert len(caplog.records) == 1


class Confused:
    """Answers with a pair, which is no Choice."""

    def choose(self, request: RoutingView, endpoints: Endpoints) -> Choice | None:
        return LeastLoaded().choose(request, endpoints).pair  # type: ignore[union-attr,return-value]


def test_an_answer_that_is_no_choice_costs_no_request() -> None:
    reservation = make_router(*split(1, 1), policy=Confused()).pick(asked())
    assert reservation
    assert isinstance(reservation.reason, PolicyFailed)


def test_a_choice_without_room_is_not_taken() -> None:
    router = make_router(*split(2, 2, capacity=Capacity(1, 1 << 20, 1)), policy=Stubborn())
    first, second = router.pick(asked()), router.pick(asked())
    assert first
    assert second
    assert first.reason == WEIGHED
    assert second.pair.name == "prefill-1#1/0 + decode-1#1/0"
    assert isinstance(second.reason, PolicyFailed)
    assert router.pick(asked()) is None


def test_a_choice_of_two_that_have_not_met_is_not_taken() -> None:
    engines = split(2, 1)
    met = Met([("prefill-1#1", "decode-0#1")])
    reservation = make_router(*engines, policy=Stubborn(), met=met).pick(asked())
    assert reservation
    assert reservation.pair.name == "prefill-1#1/0 + decode-0#1/0"


def test_the_policy_is_made_without_arguments() -> None:
    assert isinstance(load_policy("short_prompts:ShortPrompts"), ShortPrompts)


class Tells(LeastLoaded):
    """Chooses well, and tells of it what it is given."""

    def __init__(self, cached_tokens: Any = 0, reason: Any = WEIGHED) -> None:
        self._cached_tokens, self._reason = cached_tokens, reason

    def choose(self, request: RoutingView, endpoints: Endpoints) -> Choice | None:
        choice = super().choose(request, endpoints)
        return choice and Choice(choice.pair, self._reason, self._cached_tokens)


@pytest.mark.parametrize(
    "policy",
    [
        Tells(1.5),
        Tells(float("nan")),
        Tells("9"),
        Tells(None),
        Tells(-1),
        Tells(11),
        Tells(reason="because"),
        Tells(reason=Forecast("1", 1.0, 1.0, 1.0)),  # type: ignore[arg-type]
    ],
)
def test_what_nobody_could_use_is_not_taken(policy: Tells, caplog: pytest.LogCaptureFixture) -> None:
    """A host drops the connection, and with it all that runs there, at a number of tokens that it cannot read."""
    router = make_router(*split(1, 1), policy=policy)
    with caplog.at_level(logging.ERROR):
        reservations = [router.pick(asked(10)) for _ in range(2)]
    assert all(each and isinstance(each.reason, PolicyFailed) and each.to_read == 10 for each in reservations)
    assert len(caplog.records) == 1


def test_a_prompt_that_is_cached_whole_is_no_error() -> None:
    reservation = make_router(*split(1, 1), policy=Tells(10)).pick(asked(10))
    assert reservation
    assert reservation.reason == WEIGHED
