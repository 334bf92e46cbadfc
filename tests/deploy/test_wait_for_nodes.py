"""The wait for a cluster's nodes: it ends when all are there, or at its deadline with those that came."""

from __future__ import annotations

import pytest

from disagg.deploy.wait_for_nodes import wait_until_joined


class Cluster:
    def __init__(self, *looks: list[str] | None) -> None:
        self.looks, self.now_s = list(looks), 0.0

    def addresses(self) -> list[str]:
        look = self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]
        if look is None:
            raise ConnectionError("no head yet")
        return look

    def sleep(self, delay_s: float) -> None:
        self.now_s += delay_s

    def wait(self, count: int, limit_s: float) -> list[str] | None:
        return wait_until_joined(count, limit_s, self.addresses, lambda: self.now_s, self.sleep)


def test_it_waits_for_the_head_and_then_for_the_others() -> None:
    cluster = Cluster(None, None, ["a"], ["a", "b"])
    assert cluster.wait(2, 300.0) == ["a", "b"]
    assert cluster.now_s == 3.0


@pytest.mark.parametrize(
    ("looks", "came"), [((["a"],), "1 of 2 nodes after 30 s (a)"), ((None,), "0 of 2 nodes after 30 s (none)")]
)
def test_the_deadline_ends_it_and_tells_who_came(
    looks: tuple[list[str] | None], came: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = Cluster(*looks)
    assert cluster.wait(2, 30.0) is None
    assert cluster.now_s == 30.0
    assert came in capsys.readouterr().err
