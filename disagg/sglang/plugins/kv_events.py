"""In every scheduler with a prefix cache: tells the host what is stored there, and what is evicted.

Way:   SGLang's radix trees, where they would record their own KV events -> [here] -> disagg/sglang/kv_events.py -> host
Why:   SGLang's events are hashes, which leave the adapter out and are compiled at the first request (6 s); what goes
       to the host are token ids, each node's once, under numbers that we give to the ends of nodes. A node that SGLang
       splits keeps its number, as its end stays where it was; the new one before it gets one when it is spoken of
Cost:  some microseconds a node; a decode step pays a look at the clock
Fails: a new stream (sglang/kv_events.py) voids all numbers: the tree is walked, WALKED_NODES a round. A cache that
       cannot tell, and any error here, end the telling with a line in the log, never the scheduler: frontends then
       guess what it holds
"""

from __future__ import annotations

import itertools
import logging
import os
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from disagg.kv_events.events import At, Cleared, Removed, Stored, Tier
from disagg.sglang.kv_events import NAME, CacheVoice
from disagg.sglang.plugins.instead import instead_of

log = logging.getLogger(__name__)

WALKED_NODES = 100
WALK_UNSENT_BYTES = 1 << 20  # the walk waits while more is unsent
_GONE = -1
# What SGLang's schedulers call the tree that a new release writes in Rust, which has no nodes to speak of.
TREE_CORE_VARIABLE = "SGLANG_UNIFIED_RADIX_TREE_CORE_BACKEND"


def activate() -> None:
    """Before the scheduler has a tree: it is to be the one in Python."""
    if Path(os.environ.get("TMPDIR", "/"), NAME).exists():
        os.environ.setdefault(TREE_CORE_VARIABLE, "python")


def begin(scheduler: Any, dp_rank: int, folder: Path) -> None:
    """From now on this scheduler tells its host."""
    if not (folder / NAME).exists():
        return  # nobody is to know
    cache = scheduler.tree_cache
    cache = getattr(cache, "inner", cache)  # a StreamingSession around it
    if getattr(cache, "disable", False):
        return  # there is nothing to tell of
    try:
        tree = _Tree(cache)
        teller = _Teller(tree, CacheVoice(folder, dp_rank))
        tree.tell(teller)
    except Exception as error:  # noqa: BLE001 - whatever a cache that we do not know raises: the engine serves on
        log.warning("%s cannot tell what it holds, so that is guessed: %r", type(cache).__name__, error)
        return

    @instead_of(scheduler)
    def process_input_requests(*args: Any, **kwargs: Any) -> Any:
        done = process_input_requests.real(*args, **kwargs)
        teller.does(teller.came_round)  # afterwards: it may have emptied the cache, and then sleep
        return done


class _Tree:
    """The one place that knows where which release has what."""

    def __init__(self, cache: Any) -> None:
        self._owner = getattr(cache, "tree_core", cache)
        # From 0.5.19 on a recorder; before, the tree itself.
        self._recorder = getattr(self._owner, "kv_events", None) or self._owner
        prefix, suffix = ("record_", "") if hasattr(self._recorder, "record_store") else ("_record_", "_event")
        self._store, self._remove = f"{prefix}store{suffix}", f"{prefix}remove{suffix}"
        self._all_cleared = f"{prefix}all_cleared{suffix}"
        if not hasattr(self._recorder, self._store):
            raise AttributeError(f"it has no {self._store}")

    @property
    def root(self) -> Any:
        return self._owner.root_node

    def tell(self, teller: _Teller) -> None:
        @instead_of(self._recorder, self._store)
        def store(node: Any, medium: Any = None, **more: Any) -> None:
            teller.does(teller.stored, node, medium)
            store.real(node, medium, **more)

        @instead_of(self._recorder, self._remove)
        def remove(node: Any, medium: Any = None) -> None:
            teller.does(teller.removed, node, medium)
            remove.real(node, medium)

        @instead_of(self._recorder, self._all_cleared)
        def all_cleared() -> None:
            teller.does(teller.cleared)
            all_cleared.real()


def _tier(medium: Any) -> Tier | None:
    """None: a disk, or another machine."""
    return Tier.DEVICE if medium is None else {"GPU": Tier.DEVICE, "CPU": Tier.HOST}.get(medium.name)


def _tiers(node: Any) -> Iterator[Tier]:
    """Those that have it now."""
    if not node.evicted:
        yield Tier.DEVICE
    if _is_in_host(node):
        yield Tier.HOST


def _is_in_host(node: Any) -> bool:
    return bool(getattr(node, "backuped", False))  # some trees' nodes never are


class _Teller:
    def __init__(self, tree: _Tree, voice: CacheVoice) -> None:
        self._tree, self._voice = tree, voice
        self._names = itertools.count(1)
        self._void = 0  # this number and those before it mean nothing to the host any more
        self._is_walking = False
        self._to_walk: list[Any] = []
        self._is_over = False

    def does(self, part: Callable[..., None], *of: Any) -> None:
        """An error of ours costs what is known of this cache, once and for all; it must not end the scheduler."""
        if self._is_over:
            return
        try:
            part(*of)
        except Exception:
            log.exception("what this rank has cached is told no more, and will be guessed")
            self._is_over = True
            self._voice.close()  # the host hears that nobody speaks, and forgets

    def came_round(self) -> None:
        if self._is_walking and self._voice.unsent_bytes < WALK_UNSENT_BYTES:
            self._walk()
        if self._voice.flush():
            self._void = next(self._names)
            self._to_walk, self._is_walking = list(self._tree.root.children.values()), True

    def stored(self, node: Any, medium: Any) -> None:
        if (tier := _tier(medium)) is None:
            return
        is_told = self._is_walking and not self._is_named(node)
        name = self._name(node)
        if not is_told:
            self._voice.say(Stored(name, len(node.key), tier))

    def removed(self, node: Any, medium: Any) -> None:
        if (tier := _tier(medium)) is None:
            return
        if self._is_named(node) or not self._is_walking:
            self._voice.say(Removed(self._name(node), len(node.key), tier))
        elif node.parent.parent is not None:
            self._to_walk.append(node.parent)  # split off before this one: nobody else leads to it
        has_more = _is_in_host(node) if tier is Tier.DEVICE else not node.evicted
        node.disagg_name = 0 if has_more else _GONE

    def cleared(self) -> None:
        self._to_walk, self._is_walking = [], False
        self._void = next(self._names)
        self._voice.say(Cleared())

    def _is_named(self, node: Any) -> bool:
        return bool(node.__dict__.get("disagg_name", 0) > self._void)

    def _name(self, node: Any) -> int:
        """The number of the node's end. The host gets to know it, and those of the nodes before it; while the tree is
        walked, also where their KV is."""
        unnamed = []
        while node.parent is not None and not self._is_named(node):
            unnamed.append(node)
            node = node.parent
        name = 0 if node.parent is None else node.disagg_name
        for each in reversed(unnamed):
            parent, name = name, next(self._names)
            key, each.disagg_name = each.key, name
            namespace = () if parent else (key.extra_key or "", getattr(key, "cache_salt", None) or "")
            self._voice.say(At(name, parent, _packed(key), *namespace))
            for tier in _tiers(each) if self._is_walking else ():
                self._voice.say(Stored(name, len(key), tier))
        return name

    def _walk(self) -> None:
        for _ in range(min(WALKED_NODES, len(self._to_walk))):
            node = self._to_walk.pop()
            if node.__dict__.get("disagg_name", 0) != _GONE:
                self._name(node)
                self._to_walk.extend(node.children.values())
        self._is_walking = bool(self._to_walk)


def _packed(key: Any) -> bytes:
    """A node's token ids. Those of a bigram overlap; the last id of its last one belongs to what follows."""
    return array("I", key.token_ids[: len(key)]).tobytes()
