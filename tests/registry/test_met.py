"""Who has met whom: a relation that says the same as a set of pairs, and forgets a life whole."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from disagg.registry.met import Met

PREFILLS = [f"prefill-{n}#1" for n in range(4)]
DECODES = [f"decode-{n}#1" for n in range(4)]
ALONE = [f"aggregated-{n}#1" for n in range(2)]

pairs = st.one_of(
    st.tuples(st.sampled_from(PREFILLS), st.sampled_from(DECODES)), st.sampled_from([(life, life) for life in ALONE])
)
steps = st.lists(st.one_of(pairs, st.sampled_from(PREFILLS + DECODES + ALONE)))  # a pair meets, or a life ends


@settings(deadline=None)
@given(steps)
def test_it_says_what_a_set_of_pairs_says(done: list[tuple[str, str] | str]) -> None:
    met, model = Met(), set[tuple[str, str]]()
    for step in done:
        if isinstance(step, tuple):
            assert met.add(*step) == (step not in model)
            model.add(step)
        else:
            assert set(met.forget(step)) == {pair for pair in model if step in pair}
            model = {pair for pair in model if step not in pair}
        assert (len(met), set(met)) == (len(model), model)
        for life in PREFILLS + DECODES + ALONE:
            peers = {p if life == d else d for p, d in model if life in (p, d)}
            assert met.met_with(life) == peers
        assert all(((p, d) in met) == ((p, d) in model) for p in PREFILLS for d in DECODES)
    assert met == Met(model)


def test_nothing_is_kept_of_lives_that_ended() -> None:
    met = Met()
    for incarnation in range(100):
        met.add("prefill-0#1", f"decode-0#{incarnation}")
        met.add(f"aggregated-0#{incarnation}", f"aggregated-0#{incarnation}")
        met.forget(f"decode-0#{incarnation}")
        met.forget(f"aggregated-0#{incarnation}")
    assert not met._decodes
    assert not met._prefills
