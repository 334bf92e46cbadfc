"""SGLang behind our engine interface: the only file that drives `sglang.Engine`.

An engine over several nodes is one `Engine` on each: that of the first node takes the legs (SGLangEngine), the others
hold schedulers and nothing else (SGLangMember).

Way:   plane server -> [SGLangEngine] -> TokenizerManager -> scheduler ranks, and back chunk by chunk
Fails: a leg's failure is its `on_end("error", …)`; a dead scheduler ends this whole process (SGLang's SIGQUIT).
       `start` raises StartError where the installed release does not fit (disagg/sglang/fit.py)
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from msgspec.structs import asdict, replace

from disagg.adapters import Adapter
from disagg.errors import StartError
from disagg.models.adapters import read_adapter
from disagg.plane.engine import EngineFacts, Leg, LegSink
from disagg.plane.messages import MetricFamily, ProcessSample, RankHealth, RankLoad
from disagg.sglang import dead_peers
from disagg.sglang.children import pids_by_role
from disagg.sglang.embedding_leg import EmbeddingLeg, take_pairs
from disagg.sglang.fast_path import open_fast_path
from disagg.sglang.fit import check_installed
from disagg.sglang.heartbeat import read_beats
from disagg.sglang.ignored import ignored_parameters
from disagg.sglang.kv_events import CacheListener
from disagg.sglang.leg import ABORT_LONGEST_S, ABORT_S, SGLangLeg
from disagg.sglang.metrics import open_metrics, read_metrics
from disagg.sglang.rank_watch import LOOK_S, RankWatch
from disagg.sglang.stages import StageListener
from disagg.sglang.versions import emit
from disagg.start_phases import Phases

log = logging.getLogger(__name__)

DROPPED = "does not exist"  # SGLang's LoRARegistry.unregister says so


class _Part:
    """What is on each node of an engine: an `sglang.Engine` in this process's main thread, and a watch on its
    schedulers. `scratch`: the folder of this incarnation alone (TMPDIR); `other_samples`: gives the samples of the
    engine's schedulers on other nodes; `tells_cache`: schedulers are to say what they have cached."""

    def __init__(
        self,
        arguments: dict[str, Any],
        *,
        fork: bool,
        scratch: Path,
        other_samples: Callable[[], list[ProcessSample]] = list,
        phases: Phases | None = None,
        tells_cache: bool = False,
    ) -> None:
        self._arguments, self._fork, self._scratch, self._tells_cache = arguments, fork, scratch, tells_cache
        self._phases = phases or Phases()
        self._engine: Any = None
        self._watch = RankWatch(scratch, others=other_samples)
        self._stages: StageListener | None = None
        self.caches: CacheListener | None = None

    def start(self) -> EngineFacts:
        """Blocks until its schedulers are up."""
        if self._fork:
            _fork_children()
        self._stages = StageListener(self._scratch)  # they must exist before the schedulers do
        self.caches = CacheListener(self._scratch) if self._tells_cache else None
        if self._arguments.get("enable_metrics"):
            open_metrics(self._scratch)
        self._engine, off = _sglang(self._arguments, self._phases)
        self._look()
        pids = pids_by_role(self._engine.get_all_child_pids())
        return EngineFacts(pids={"host": os.getpid(), **pids}, switched_off=off, **_capacity(self._scratch))

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop that this engine's asyncio parts were made for."""
        loop: asyncio.AbstractEventLoop = self._engine.loop
        return loop

    def drop_peer(self, life: str) -> None:
        dead_peers.announce(self._scratch, life)

    def listen(self, on_stage: Callable[[str, str, int | None], None]) -> None:
        """`on_stage(leg id, stage, cached tokens)` is called for what the schedulers here report."""
        assert self._stages is not None
        self._stages.listen(self.loop, on_stage)

    def _look(self) -> None:
        self.loop.call_later(LOOK_S, self._look)  # first: a look that fails must not be the last
        self._watch.sample()


class SGLangEngine(_Part):
    """The part on the first node, which takes the legs. `on_unloaded` is called when an adapter's prefixes are of no
    use any more."""

    on_unloaded: Callable[[], None] = staticmethod(lambda: None)

    def start(self) -> EngineFacts:
        self._legs: dict[str, SGLangLeg] = {}
        # Only an engine that reads prompts has steps of many seconds.
        self._abort_longest_s = ABORT_S if self._arguments.get("disaggregation_mode") == "decode" else ABORT_LONGEST_S
        facts, engine = super().start(), self._engine
        from sglang.srt.managers.io_struct import unwrap_from_pickle

        info = engine._scheduler_init_result.scheduler_infos[0]
        self.listen(self.on_stage)
        engine.tokenizer_manager.enable_metrics = False  # of each token: frontends count the same (metrics.py)
        open_fast_path(engine.tokenizer_manager, self._legs, unwrap_from_pickle)
        if self._arguments.get("is_embedding"):
            take_pairs(engine.tokenizer_manager)
        return replace(
            facts,
            ranks=_dp_ranks(engine.server_args),
            caches_prompts=not engine.server_args.disable_radix_cache,
            context_length=int(engine.tokenizer_manager.model_config.context_len),
            request_tokens_max=request_tokens_max(int(info["max_req_input_len"]), engine.server_args, asdict(facts)),
            ignores=ignored_parameters(engine.server_args, facts.switched_off),
        )

    def submit(self, leg: Leg, sink: LegSink) -> object:
        leg_class = EmbeddingLeg if leg.embeds else SGLangLeg
        handle = self._legs[leg.id] = leg_class(
            leg,
            sink,
            self._engine.tokenizer_manager,
            came_round_at_s=lambda: self._watch.came_round_at_s(leg.dp_rank),
            abort_longest_s=self._abort_longest_s,
        )
        handle.begin(self._engine, on_end=lambda: self._legs.pop(leg.id, None))
        return handle

    def abort(self, handle: object) -> None:
        assert isinstance(handle, SGLangLeg)
        handle.abort()

    def loads(self) -> list[RankLoad]:
        """SGLang's num_used_tokens is what is neither free nor evictable, in all three modes: a cached prefix that no
        request holds counts as free."""
        snapshots = self._engine.tokenizer_manager.load_snapshot_reader.read_all()
        return [
            RankLoad(
                dp_rank=s.dp_rank,
                running=s.num_running_reqs,
                waiting=s.num_waiting_reqs,
                kv_tokens_used=s.num_used_tokens,
                kv_tokens_total=s.max_total_num_tokens,
                reported_at_s=s.timestamp,
            )
            for s in snapshots
        ]

    def metrics(self, labels: str) -> list[MetricFamily]:
        """Of the schedulers on the first node."""
        return read_metrics(self._scratch, labels)

    async def flush_cache(self, wait_s: float) -> str:
        """SGLang tells what its first rank did; what our legs are on has not been flushed."""
        done = await self._engine.tokenizer_manager.flush_cache(timeout_s=wait_s)
        if not done.success:
            return done.message or "requests run or wait there"
        ranks = sorted({handle.leg.dp_rank for handle in self._legs.values()} - {0})
        return f"requests run or wait there, on dp rank {', '.join(map(str, ranks))}" if ranks else ""

    def health(self) -> list[RankHealth]:
        return self._watch.health

    async def load_adapter(self, adapter: Adapter) -> None:
        """On all of its ranks, on whichever node. One that SGLang would load, and die of later, is refused before."""
        files = await asyncio.to_thread(read_adapter, adapter.path, str(self._arguments.get("model_path", "")))
        if files.absent:
            raise ValueError(f"{adapter.path} {files.absent}")
        name, path, pinned = adapter.name, adapter.path, adapter.pinned
        _succeeded(await self._engine.async_load_lora_adapter(lora_name=name, lora_path=path, pinned=pinned))

    async def unload_adapter(self, name: str) -> None:
        """One that SGLang has dropped by itself (max_loaded_loras) is gone already."""
        changed = await self._engine.async_unload_lora_adapter(lora_name=name)
        if DROPPED not in (changed.error_message or ""):
            _succeeded(changed)
        self.on_unloaded()

    def stop(self) -> None:
        if self._stages is not None:
            self._stages.close()
        if self.caches is not None:
            self.caches.close()
        self._engine.shutdown()

    def adapter_of(self, word: str) -> str:
        """The adapter that a scheduler's word for one means: SGLang gives it an id each time it is loaded. A word that
        means none any more stands for itself, and nobody asks for that."""
        registry = self._engine.tokenizer_manager.lora_registry
        return next((ref.lora_name for ref in registry._registry.values() if word.endswith(ref.lora_id)), word)

    def on_stage(self, leg_id: str, stage: str, cached_tokens: int | None) -> None:
        """Called for a stage that a scheduler on any of the engine's nodes reports."""
        if leg_id in self._legs:
            self._legs[leg_id].on_stage(stage, cached_tokens)


class SGLangMember(_Part):
    """The part of an engine over several nodes that is on one of its further nodes."""

    def samples(self) -> list[ProcessSample]:
        return self._watch.samples


def _sglang(arguments: dict[str, Any], phases: Phases) -> tuple[Any, tuple[str, ...]]:
    """An `sglang.Engine`, given its arguments as the installed release spells them; our parts that do not fit it."""
    version = metadata.version("sglang")
    off = check_installed(version, arguments.get("device", ""))
    from sglang.srt.entrypoints.engine import Engine

    phases.end("imports")
    engine = Engine(**emit(arguments, version))
    phases.end("engine")
    infos = engine._scheduler_init_result.scheduler_infos
    phases.split("engine", infos[0].get("startup_time") if infos else None)
    return engine, off


def _capacity(scratch: Path) -> dict[str, Any]:
    """Each rank's capacity, from the schedulers' beats: SGLang's init info lacks parts, and with dp all other ranks."""
    beats = read_beats(scratch)
    if not beats:
        raise StartError("sglang plugins", "SGLang did not load ours", "see its log above, and reinstall disagg")
    return {
        "kv_tokens": int(min(beat.kv_tokens for beat in beats)),
        "requests_max": int(min(beat.requests_max for beat in beats)),
        "page_size": int(max(beat.page_size for beat in beats)),
        "chunk_tokens": int(min(beat.chunk_tokens for beat in beats)),
    }


def request_tokens_max(max_req_input_len: int, server_args: Any, capacity: Mapping[str, int]) -> int:
    """The longest prompt and answer of one request, in tokens.

    One more than the prompt must fit, and SGLang refuses prompts longer than max_req_input_len. A decode engine takes
    a prompt in only while num_reserved_decode_tokens are free beside it: a longer one would wait in front of all
    others until the engine is taken for dead.
    """
    longest = max_req_input_len + 1
    if server_args.disaggregation_mode != "decode":
        return longest
    page = capacity["page_size"]
    return min(longest, (capacity["kv_tokens"] - int(server_args.num_reserved_decode_tokens)) // page * page)


def _succeeded(changed: Any) -> None:
    """`changed`: SGLang's LoRAUpdateOutput."""
    if not changed.success:
        raise ValueError(changed.error_message or "SGLang did not say why")


def _fork_children() -> None:
    """Makes SGLang fork its processes, as everything is imported here. SGLang itself would insist on "spawn"."""
    real = multiprocessing.set_start_method

    def set_start_method(_method: str | None, force: bool = False) -> None:
        real("fork", force=True)

    multiprocessing.set_start_method = set_start_method  # type: ignore[assignment]


def _dp_ranks(server_args: Any) -> int:
    """Dp ranks of an engine; SGLang 0.5.22 moved them from dp_size to attn_dp_size."""
    return max(int(getattr(server_args, "attn_dp_size", 1) or 1), int(server_args.dp_size or 1))
