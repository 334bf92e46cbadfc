"""Every scheduler hears of each dead peer, once, however many there are of either."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from disagg.sglang import dead_peers
from disagg.sglang.dead_peers import DeadPeers, announce, follow


def test_each_scheduler_drops_each_dead_life_once(tmp_path: Path) -> None:
    dropped: list[list[str]] = [[], []]
    schedulers = [DeadPeers(tmp_path, each.append) for each in dropped]
    for scheduler in schedulers:
        scheduler.read_new()  # nothing has been told yet
    announce(tmp_path, "decode-0#1")
    announce(tmp_path, "decode-1#3")
    for _ in range(2):
        for scheduler in schedulers:
            scheduler.read_new()
    announce(tmp_path, "decode-0#2")
    for scheduler in schedulers:
        scheduler.read_new()
    assert dropped == [["decode-0#1", "decode-1#3", "decode-0#2"]] * 2


def test_a_half_written_line_is_read_when_it_is_whole(tmp_path: Path) -> None:
    dropped: list[str] = []
    scheduler = DeadPeers(tmp_path, dropped.append)
    (tmp_path / "dead-peers").write_text("decode-0#1\ndecode-")
    scheduler.read_new()
    assert dropped == ["decode-0#1"]
    with (tmp_path / "dead-peers").open("a") as file:
        file.write("1#1\n")
    scheduler.read_new()
    assert dropped == ["decode-0#1", "decode-1#1"]


def test_one_that_cannot_be_dropped_does_not_hide_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dead_peers, "LOOK_S", 0.01)
    dropped: list[str] = []

    def drop(life: str) -> None:
        dropped.append(life)
        if life == "decode-0#1":
            raise RuntimeError("NIXL said no")

    lives = ["decode-0#1", "decode-1#1", "decode-2#1"]
    announce(tmp_path, lives[0])
    announce(tmp_path, lives[1])  # a node's engines die together
    follow(tmp_path, drop)
    for told in (2, 3):
        until_s = time.monotonic() + 5.0
        while len(dropped) < told and time.monotonic() < until_s:
            time.sleep(0.005)
        if told == 2:
            announce(tmp_path, lives[2])
    assert dropped == lives
