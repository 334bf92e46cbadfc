"""Every scheduler hears of each dead peer, once, however many there are of either."""

from __future__ import annotations

from pathlib import Path

from disagg.engine.dead_peers import LOOK_S, DeadPeers, tell


def test_each_scheduler_drops_each_dead_life_once(tmp_path: Path) -> None:
    dropped: list[list[str]] = [[], []]
    schedulers = [DeadPeers(tmp_path, each.append) for each in dropped]
    for scheduler in schedulers:
        scheduler.look(10.0)  # nothing has been told yet
    tell(tmp_path, "decode-0#1")
    tell(tmp_path, "decode-1#3")
    for now_s in (10.0 + LOOK_S, 10.0 + 2 * LOOK_S):
        for scheduler in schedulers:
            scheduler.look(now_s)
    tell(tmp_path, "decode-0#2")
    for scheduler in schedulers:
        scheduler.look(10.0 + 2.5 * LOOK_S)  # too soon
        scheduler.look(10.0 + 3 * LOOK_S)
    assert dropped == [["decode-0#1", "decode-1#3", "decode-0#2"]] * 2


def test_a_half_written_line_is_read_when_it_is_whole(tmp_path: Path) -> None:
    dropped: list[str] = []
    scheduler = DeadPeers(tmp_path, dropped.append)
    (tmp_path / "dead-peers").write_text("decode-0#1\ndecode-")
    scheduler.look(1.0)
    assert dropped == ["decode-0#1"]
    with (tmp_path / "dead-peers").open("a") as file:
        file.write("1#1\n")
    scheduler.look(3.0)
    assert dropped == ["decode-0#1", "decode-1#1"]
