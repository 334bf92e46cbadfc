"""Who sends much waits for himself, not in front of others; and nobody waits for ever."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from disagg.coordinator.fair_line import FairLine


def served(line: FairLine[str], count: int = 1 << 30) -> list[str]:
    order = []
    while len(line) and len(order) < count:
        item = next(iter(line))
        line.serve(item)
        order.append(item)
    return order


def test_one_key_is_first_come_first_served() -> None:
    line: FairLine[str] = FairLine()
    for name in "cab":
        line.add(name, b"key", 100)
    assert served(line) == ["c", "a", "b"]


def test_a_flood_of_one_key_does_not_hold_up_another() -> None:
    line: FairLine[str] = FairLine()
    for number in range(20):
        line.add(f"flood-{number}", b"flood", 100)
    line.add("other-0", b"other", 100)
    line.add("other-1", b"other", 100)
    assert served(line, 4) == ["flood-0", "other-0", "flood-1", "other-1"]


def test_it_is_tokens_that_are_shared_not_requests() -> None:
    line: FairLine[str] = FairLine()
    for number in range(4):
        line.add(f"long-{number}", b"long", 1000)
    for number in range(10):
        line.add(f"short-{number}", b"short", 100)
    first = served(line, 12)
    assert first.count("long-0") + first.count("long-1") == 2
    assert sum(name.startswith("short") for name in first) == 10


def test_a_higher_priority_is_next() -> None:
    line: FairLine[str] = FairLine()
    line.add("usual", b"a", 1)
    line.add("low", b"b", 1, priority=-1)
    line.add("high", b"a", 1000, priority=5)
    assert served(line) == ["high", "usual", "low"]


def test_a_key_that_was_idle_has_no_claim_on_the_past() -> None:
    line: FairLine[str] = FairLine()
    for number in range(10):
        line.add(f"busy-{number}", b"busy", 100)
    served(line, 5)
    for number in range(5):
        line.add(f"idle-{number}", b"idle", 100)
    rest = served(line)
    assert rest[:4] in (["busy-5", "idle-0", "busy-6", "idle-1"], ["idle-0", "busy-5", "idle-1", "busy-6"])


@given(
    st.lists(st.tuples(st.sampled_from([b"a", b"b", b"c"]), st.integers(1, 1000), st.sampled_from(["saa", "r"]))),
)
def test_what_is_added_is_served_or_removed_once(steps: list[tuple[bytes, int, str]]) -> None:
    line: FairLine[int] = FairLine()
    waiting: set[int] = set()
    for number, (key, cost, what) in enumerate(steps):
        line.add(number, key, cost)
        waiting.add(number)
        if what == "s":
            item = next(iter(line))
            line.serve(item)
            waiting.remove(item)
        elif what == "r":
            line.remove(number)
            waiting.remove(number)
        assert set(line) == waiting
        assert len(line) == len(waiting)
