"""Who meets next: nobody twice at a time, nobody forgotten, and at no more cost than what is taken."""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from disagg.cluster.meetings import Meetings

PREFILLS, DECODES = [f"p{n}" for n in range(4)], [f"d{n}" for n in range(4)]
LIVES = [*PREFILLS, *DECODES, "a0", "a1"]
pairs = st.one_of(
    st.tuples(st.sampled_from(PREFILLS), st.sampled_from(DECODES)), st.sampled_from([("a0", "a0"), ("a1", "a1")])
)
steps = st.one_of(
    st.tuples(st.just("want"), pairs),
    st.tuples(st.just("next"), st.none()),
    st.tuples(st.just("free"), st.integers(0, 9)),
    st.tuples(st.just("drop"), st.sampled_from(LIVES)),
    st.tuples(st.just("claim"), st.sets(st.sampled_from(LIVES), min_size=1, max_size=2)),
    st.tuples(st.just("take"), st.integers(0, 9)),
    st.tuples(st.just("unclaim"), st.integers(0, 9)),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(steps, max_size=60))
def test_no_engine_is_taken_twice_and_all_that_can_be_is_found(done: list[tuple[str, object]]) -> None:
    meetings = Meetings()
    wanted: set[frozenset[str]] = set()
    taken: list[set[str]] = []
    claims: list[set[str]] = []

    def busy() -> set[str]:
        return set().union(*taken)

    def possible() -> set[frozenset[str]]:
        return {pair for pair in wanted if pair.isdisjoint(busy()) and pair.isdisjoint(set().union(*claims))}

    def take_next() -> bool:
        before, pair = possible(), meetings.next()
        assert (pair is not None) == bool(before)
        if pair is not None:
            assert frozenset(pair) in before
            wanted.discard(frozenset(pair))
            taken.append(set(pair))
        return pair is not None

    for what, of in done:
        match what, of:
            case "want", (str(one), str(other)):
                meetings.want(one, other)
                wanted.add(frozenset((one, other)))
            case "next", _:
                take_next()
            case "free", int() if of < len(taken):
                meetings.free(tuple(taken.pop(of)))
            case "drop", str():
                meetings.drop(of)
                wanted = {pair for pair in wanted if of not in pair}
            case "claim", set():
                meetings.claim(of)
                claims.append(of)
            case "take", int() if of < len(claims):
                is_free = claims[of].isdisjoint(busy())
                assert meetings.take(claims[of]) == is_free
                if is_free:
                    taken.append(claims.pop(of))
            case "unclaim", int() if of < len(claims):
                meetings.unclaim(claims.pop(of))
        assert len(meetings) == len(busy())
    while claims:
        meetings.unclaim(claims.pop())
    while taken or wanted:
        while take_next():
            pass
        meetings.free(tuple(taken.pop()))
    assert meetings.next() is None
    assert not meetings._wanted
    assert not meetings._turns


def test_everybody_has_a_first_meeting_early_on() -> None:
    """With it an engine may serve; 400 pairs are to meet here, by 8 at a time."""
    meetings = Meetings()
    for prefill in (f"p{n}" for n in range(20)):
        for decode in (f"d{n}" for n in range(20)):
            meetings.want(prefill, decode)
    running: list[tuple[str, str]] = []
    have_met: set[str] = set()
    random = Random(1)
    for _ in range(60):
        while len(running) < 8 and (pair := meetings.next()) is not None:
            running.append(pair)
        over = running.pop(random.randrange(len(running)))
        have_met.update(over)
        meetings.free(over)
    assert len(have_met) == 40


def test_a_pair_that_is_wanted_again_comes_after_the_others() -> None:
    meetings = Meetings()
    for decode in ("d0", "d1", "d2"):
        meetings.want("p0", decode)
    met = []
    for _ in range(4):
        pair = meetings.next()
        assert pair is not None
        met.append("d0" if "d0" in pair else "another")
        if met == ["d0"]:
            meetings.want(*pair)  # it has failed
        meetings.free(pair)
    assert met == ["d0", "another", "another", "d0"]
