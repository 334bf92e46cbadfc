"""A scheduler's radix tree and its host's: nodes that split, streams that end, hosts that do not read."""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from disagg.kv_events.blocks import BlockHasher
from disagg.kv_events.book import KvBook
from disagg.kv_events.events import At, Stored, Telling, Tier, encode_telling
from disagg.sglang import kv_events as stream
from disagg.sglang.kv_events import CacheListener
from disagg.sglang.plugins import kv_events as plugin

SECRET, BLOCK = b"s" * 32, 4
HASHER = BlockHasher(SECRET, BLOCK)
_TELLING = encode_telling(Telling(0.0, [At(3, 1, b"", "adapter")])).replace(b"adapter", b"\xff" * 7)
NOT_UTF8 = len(_TELLING).to_bytes(4, "little") + _TELLING
Medium = Enum("Medium", "GPU CPU DISK")


class Key:
    def __init__(self, ids: tuple[int, ...], extra_key: str | None = None) -> None:
        self.token_ids, self.extra_key = array("q", ids), extra_key

    def __len__(self) -> int:
        return len(self.token_ids)


class Node:
    def __init__(self, key: Key, parent: Node | None) -> None:
        self.key, self.parent, self.children = key, parent, dict[Any, Node]()
        self.evicted, self.backuped = False, False


class Recorder:
    """SGLang's, which does nothing unless somebody asked for its own events."""

    def record_store(self, node: Node, medium: Any = None, *, session_id: str | None = None) -> None: ...

    def record_remove(self, node: Node, medium: Any = None) -> None: ...

    def record_all_cleared(self) -> None: ...


class Tree:
    """A radix tree as SGLang's: pages of one token, splits that nobody hears of."""

    def __init__(self) -> None:
        self.kv_events = Recorder()
        self.root_node = Node(Key(()), None)

    def insert(self, ids: tuple[int, ...], adapter: str | None = None) -> None:
        node = self.root_node
        while ids:
            child = node.children.get((adapter, ids[0]))
            if child is None:
                child = node.children[adapter, ids[0]] = Node(Key(ids, adapter), node)
                self.kv_events.record_store(child, session_id=None)
                return
            has = tuple(child.key.token_ids)
            common = next((at for at, pair in enumerate(zip(has, ids, strict=False)) if pair[0] != pair[1]), len(has))
            common = min(common, len(ids))
            if common < len(has):
                child = self._split(node, child, common)
            node, ids = child, ids[common:]

    def _split(self, node: Node, child: Node, at: int) -> Node:
        ids, adapter = tuple(child.key.token_ids), child.key.extra_key
        upper = node.children[adapter, ids[0]] = Node(Key(ids[:at], adapter), node)
        upper.children[adapter, ids[at]] = child
        child.key, child.parent = Key(ids[at:], adapter), upper
        return upper

    def leaves(self) -> list[Node]:
        return [node for node in self.nodes() if not node.children]

    def nodes(self) -> Iterator[Node]:
        to_see = list(self.root_node.children.values())
        while to_see:
            node = to_see.pop()
            yield node
            to_see += node.children.values()

    def evict(self, node: Node) -> None:
        assert node.parent is not None
        self.kv_events.record_remove(node, Medium.GPU)
        node.evicted = True
        node.parent.children = {k: each for k, each in node.parent.children.items() if each is not node}

    def clear(self) -> None:
        self.root_node = Node(Key(()), None)
        self.kv_events.record_all_cleared()

    def keys(self) -> set[int]:
        found: set[int] = set()
        for node in self.nodes():
            ids: list[int] = []
            each: Node | None = node
            while each is not None:
                ids = [*each.key.token_ids, *ids]
                each = each.parent
            found.update(HASHER.path(ids, node.key.extra_key or ""))
        return found


@pytest.fixture(autouse=True)
def _look_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "LOOK_S", 0.0)


class Scheduler:
    def __init__(self, folder: Path, tree: Tree) -> None:
        self.tree_cache = tree
        plugin.begin(self, 0, folder)

    def process_input_requests(self) -> None: ...


class Host:
    def __init__(self, folder: Path) -> None:
        self.book = KvBook(SECRET, BLOCK)
        self.listener = CacheListener(folder)
        self.listener.listen(asyncio.get_running_loop(), self._hear)

    def _hear(self, dp_rank: int, telling: bytes) -> None:
        self.book.hear(dp_rank, telling, lambda: self.listener.again(dp_rank))

    @property
    def keys(self) -> set[int]:
        rank = self.book._ranks.get(0)
        return set(rank.cache._held._blocks) if rank is not None and rank.is_known else set()


async def rounds(scheduler: Scheduler, tree: Tree, host: Host, limit_s: float = 10.0) -> None:
    """Until the host knows what is in the tree."""
    async with asyncio.timeout(limit_s):
        while host.keys != tree.keys():
            scheduler.process_input_requests()
            await asyncio.sleep(0.001)


def end(scheduler: Scheduler, host: Host) -> None:
    host.listener.close()
    for _ in range(3):
        scheduler.process_input_requests()  # it notices, and closes its end


def ids(random: Random) -> tuple[int, ...]:
    return tuple(random.choices([5, 6], k=random.randrange(1, 40)))


@pytest.mark.parametrize("seed", range(5))
async def test_the_host_has_what_the_tree_has_through_splits_streams_that_end_and_a_flush(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugin, "WALKED_NODES", 2)  # so that much happens while the tree is walked
    random, host, tree = Random(seed), Host(tmp_path), Tree()
    scheduler = Scheduler(tmp_path, tree)
    for step in range(200):
        tree.insert(ids(random), random.choice([None, "pirate"]))
        if random.random() < 0.5:
            tree.evict(random.choice(tree.leaves()))
        if step % 50 == 40:
            host.listener.again(0)  # as it does when it is confused
        if step == 120:
            tree.clear()
        if random.random() < 0.5:
            scheduler.process_input_requests()
            await asyncio.sleep(0)
        if step % 20 == 0:
            await rounds(scheduler, tree, host)
    await rounds(scheduler, tree, host)
    assert host.book.epochs[0] >= 4
    end(scheduler, host)


async def test_a_host_that_does_not_read_holds_nothing_up_and_knows_all_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "UNSENT_MAX_BYTES", 20_000)
    host, tree = Host(tmp_path), Tree()
    scheduler = Scheduler(tmp_path, tree)
    await rounds(scheduler, tree, host)
    longest_s = 0.0
    for number in range(60):  # 480 kB, and the loop that reads does not run
        tree.insert((number + 10, *range(2000)))
        began_s = time.perf_counter()
        scheduler.process_input_requests()
        longest_s = max(longest_s, time.perf_counter() - began_s)
    assert longest_s < 1.0
    await rounds(scheduler, tree, host)
    assert host.book.epochs[0] > 1
    end(scheduler, host)


async def test_what_no_scheduler_would_say_ends_the_stream(tmp_path: Path) -> None:
    host = Host(tmp_path)
    reader, writer = await asyncio.open_unix_connection(str(tmp_path / stream.NAME))
    writer.write(b"\x05\0\0\0hello")
    assert await reader.read() == b""
    writer.close()
    host.listener.close()


async def test_an_error_of_ours_ends_the_telling_and_not_the_scheduler(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    host, tree = Host(tmp_path), Tree()
    scheduler = Scheduler(tmp_path, tree)
    tree.insert((1, 2, 3, 4, 5))
    await rounds(scheduler, tree, host)
    tree.kv_events.record_store(SimpleNamespace(parent=tree.root_node), Medium.GPU)  # type: ignore[arg-type]
    tree.insert((6, 7, 8, 9))
    tree.evict(tree.leaves()[0])
    tree.clear()
    async with asyncio.timeout(10):
        while host.keys or host.book.sequences:
            scheduler.process_input_requests()
            await asyncio.sleep(0.001)
    assert [record.message for record in caplog.records if "told no more" in record.message]
    for _ in range(20):
        scheduler.process_input_requests()  # and it does not begin again
        await asyncio.sleep(0)
    assert host.book.epochs == {0: 1}
    end(scheduler, host)


def test_a_cache_that_cannot_tell_is_named_in_the_log_and_its_scheduler_serves(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class RustTree: ...

    (tmp_path / stream.NAME).touch()
    scheduler = Scheduler(tmp_path, RustTree())  # type: ignore[arg-type]
    scheduler.process_input_requests()
    assert "RustTree cannot tell what it holds, so that is guessed" in caplog.text


def test_a_scheduler_whose_host_asks_for_nothing_or_whose_cache_is_off_tells_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tree = Tree()
    plugin.begin(SimpleNamespace(tree_cache=tree), 0, tmp_path)
    assert "record_store" not in vars(tree.kv_events)
    (tmp_path / stream.NAME).touch()
    plugin.begin(SimpleNamespace(tree_cache=SimpleNamespace(disable=True, kv_events=tree.kv_events)), 0, tmp_path)
    assert "record_store" not in vars(tree.kv_events)
    assert not caplog.records


@pytest.mark.parametrize("event", [At(2, 0, b"abc"), Stored(1, 10 * BLOCK, Tier.DEVICE), None])
async def test_a_telling_that_does_not_fit_ends_its_stream_once_and_the_next_one_says_all(
    event: At | Stored | None, tmp_path: Path
) -> None:
    """Bytes that are no ids, or (None) no text: these were told again with each telling that followed."""
    host, voice = Host(tmp_path), stream.CacheVoice(tmp_path, 0)
    for number in range(200):
        if voice.flush():
            voice.say(At(1, 0, array("I", range(BLOCK)).tobytes()))
            voice.say(Stored(1, BLOCK, Tier.DEVICE))
        elif number == 50 and event is None:
            voice._unsent += NOT_UTF8
        elif number == 50 and event is not None:
            voice.say(event)
        await asyncio.sleep(0.001)
    assert voice.streams == host.book.epochs[0] == 2
    assert host.keys == set(HASHER.path(range(BLOCK)))
    voice.close()
    host.listener.close()


async def test_what_raises_is_not_told_twice(tmp_path: Path) -> None:
    told: list[bytes] = []
    failed: list[Any] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _loop, context: failed.append(context["exception"]))

    def hear(_dp_rank: int, telling: bytes) -> None:
        told.append(telling)
        if len(told) == 2:
            raise ZeroDivisionError

    listener = CacheListener(tmp_path)
    listener.listen(loop, hear)
    voice = stream.CacheVoice(tmp_path, 0)
    voice.flush()
    for number in range(5):
        voice.say(Stored(number, BLOCK, Tier.DEVICE))
        voice.flush()
        await asyncio.sleep(0.01)
    assert len(told) == len(set(told)) == 5
    assert [type(each) for each in failed] == [ZeroDivisionError]
    voice.close()
    listener.close()
