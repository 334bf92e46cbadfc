"""SGLang plugin of every engine: adds what SGLang's KV transfers lack (times and bytes a request, dropping a dead
peer).

Way:   entry point of the group `sglang.srt.plugins`; SGLang runs it in the host and in every scheduler
Out:   per request, to SGLangEngine: when its phases were, and SGLang's own count of KV bytes; its stages as they come
       (stages.py); each scheduler's beats (heartbeat.py); what its prefix cache holds (kv_events.py)
Owns:  the NIXL agents' names (LIFE/PROCESS/NAME, so a dead peer can be found, and what is mapped of it) and their
       progress thread
"""

from __future__ import annotations

import itertools
import logging
import os
import sys
import threading
from pathlib import Path
from typing import Any

from disagg.host_spec import LIFE_VARIABLE, is_on
from disagg.sglang import dead_peers
from disagg.sglang.plugins import faults, first_logprobs, kv_events, stages
from disagg.sglang.plugins import heartbeat as pulse
from disagg.sglang.plugins import kv_runs as runs
from disagg.sglang.plugins.instead import instead_of
from transfer import ipc_cache

log = logging.getLogger(__name__)

PROGRESS_WAKE_US = 1000  # NIXL's Python API fixes 0, and its progress thread then burns a core
MIB = 1024 * 1024

# SchedulerReqTimeStats attribute -> name in a request's timeline. All are time.perf_counter() of the scheduler,
# which on Linux is the clock of time.monotonic(), shared by all processes of a node.
_MOMENTS = {
    "prefill_bootstrap_queue_entry_time": "bootstrap_start",
    "bootstrap_done_time": "bootstrap_end",
    "forward_entry_time": "forward_start",
    "prefill_finished_time": "forward_end",
    "prefill_transfer_queue_entry_time": "transfer_queued",
    "prefill_kv_transfer_finish_time": "transfer_end",
    "decode_prealloc_queue_entry_time": "prealloc_start",
    "decode_transfer_queue_entry_time": "transfer_wait_start",
    "wait_queue_entry_time": "queued",
}
_STATE_KEY = "disagg"


def activate() -> None:
    if LIFE_VARIABLE not in os.environ:
        return
    ipc_cache.settle()
    _patient_agents(os.environ[LIFE_VARIABLE])
    _request_times()
    _hand_over_request_times()
    if "sglang.srt.managers.scheduler" in sys.modules:
        _dead_peers()
        parts = {"runs": runs, "stages": stages, "first_logprobs": first_logprobs, "faults": faults}
        for name, part in (parts | {"kv_events": kv_events}).items():
            if is_on(name):
                part.activate()
        _once_a_scheduler_has_started()


def _once_a_scheduler_has_started() -> None:
    """SGLang asks a scheduler for its init info between its start and its loop."""
    from sglang.srt.managers.scheduler import Scheduler

    @instead_of(Scheduler)
    def get_init_info(self: Any) -> Any:
        folder, ranks = Path(os.environ["TMPDIR"]), _ranks_of(self)
        pulse.begin(self, ranks, folder)
        dead_peers.follow(folder, self.disagg_drop_peer)
        if (ranks.pp_rank, ranks.attn_tp_rank, ranks.attn_cp_rank) == (0, 0, 0):  # it speaks for its dp rank
            if is_on("stages"):
                stages.begin(folder)
            if is_on("kv_events"):
                kv_events.begin(self, int(ranks.dp_rank or 0), folder)
        return get_init_info.real(self)


def _ranks_of(scheduler: Any) -> Any:
    """What has its tp_rank, dp_rank and the like: the scheduler, its `ps`, or from 0.5.21 on SGLang's context."""
    if hasattr(scheduler, "ps") or hasattr(scheduler, "pp_rank"):
        return getattr(scheduler, "ps", scheduler)
    from sglang.srt.runtime_context import get_parallel

    return get_parallel()


def _patient_agents(life: str) -> None:
    from nixl._api import nixl_agent

    bindings = sys.modules[nixl_agent.__module__].nixlBind
    real = bindings.nixlAgentConfig
    if not isinstance(real.__dict__.get("pthrDelay"), property):
        log.warning("this NIXL has no pthrDelay: its progress thread may use a whole core when idle")
        return

    class PatientConfig(real):  # type: ignore[misc, valid-type]
        pthrDelay = property(
            lambda self: real.pthrDelay.fget(self), lambda self, _us: real.pthrDelay.fset(self, PROGRESS_WAKE_US)
        )

    bindings.nixlAgentConfig = PatientConfig

    @instead_of(nixl_agent)
    def __init__(self: Any, name: str, *args: Any, **kwargs: Any) -> None:
        __init__.real(self, f"{life}/{ipc_cache.identity()}/{name}", *args, **kwargs)


def _request_times() -> None:
    """SGLang's schedulers keep these times and bytes per request but send only two of them on, and those not always."""
    from sglang.srt.observability.req_time_stats import SchedulerReqTimeStats as Stats

    # Not by instead_of: these two run for each request of each decode step.
    getstate, setstate = Stats.__getstate__, Stats.__setstate__

    def __getstate__(self: Any) -> Any:
        state = getstate(self)
        if getattr(self, "_disagg_sent", False):
            return state  # a decode step pickles this for each request: tell it once
        moments = {name: at for attribute, name in _MOMENTS.items() if (at := getattr(self, attribute, 0.0)) > 0}
        transferred_mib = self.transfer_total_mb
        if transferred_mib:
            moments["kv_bytes"] = round(transferred_mib * MIB)
            moments["kv_transfer_s"] = transferred_mib / 1024 / self.transfer_speed_gb_s
        if "forward_end" in moments or "transfer_end" in moments or "transfer_wait_start" in moments:
            self._disagg_sent = self.disagg_mode.value != "prefill"
        return {**state, _STATE_KEY: moments}

    def __setstate__(self: Any, state: Any) -> None:
        if isinstance(state, dict) and _STATE_KEY in state:
            state = dict(state)
            self.disagg_moments = state.pop(_STATE_KEY)
        setstate(self, state)

    Stats.__getstate__, Stats.__setstate__ = __getstate__, __setstate__


def _hand_over_request_times() -> None:
    """In the host: keeps them as `TokenizerManager.disagg_moments[request id]` until SGLangLeg takes them. SGLang
    itself reads these objects only with its Prometheus metrics on."""
    from sglang.srt.managers.io_struct import unwrap_from_pickle
    from sglang.srt.managers.tokenizer_manager import TokenizerManager

    @instead_of(TokenizerManager)
    async def _handle_batch_output(self: Any, batch: Any) -> Any:
        batch.time_stats = unwrap_from_pickle(batch.time_stats)  # once: SGLang's own call finds plain objects
        kept = self.__dict__.setdefault("disagg_moments", {})
        for request_id, stats in zip(batch.rids, batch.time_stats or (), strict=False):
            moments = getattr(stats, "disagg_moments", None)
            if moments and request_id in self.rid_to_state:
                kept[request_id] = moments
        return await _handle_batch_output.real(self, batch)


def _unmap_soon(agent: str, peer: Any) -> None:
    """`peer`: what it registered. Its GPU memory is mapped only where UCX's cache is on."""
    process = ipc_cache.identity_of(agent.split("/")[1])
    if process is None or not ipc_cache.is_on():
        return
    addresses = [*peer.dst_kv_ptrs, *itertools.chain.from_iterable(peer.dst_state_data_ptrs)]

    def unmap() -> None:
        if ipc_cache.forget(process, addresses):
            log.info("unmapped the GPU memory of the dead peer %s", agent)

    timer = threading.Timer(ipc_cache.QUIET_S, unmap)
    timer.daemon = True
    timer.start()


def _dead_peers() -> None:
    """Adds Scheduler.disagg_drop_peer, which a thread calls (dead_peers.py), and drops peers that NIXL reports as
    disconnected. A transfer of SGLang's threads to a dropped peer then fails (AssertionError, or NIXL's NOT_FOUND), and
    only that room with it.

    A lock keeps dropping and registering apart: SGLang's thread that registers peers ends at its first error, and no
    room is bootstrapped after that.
    """
    from sglang.srt.disaggregation.nixl import conn
    from sglang.srt.managers.scheduler import Scheduler

    registering = threading.Lock()

    def disagg_drop_peer(self: Any, life: str) -> None:
        queue = self.disagg_prefill_bootstrap_queue
        if queue is not None:
            manager = queue.kv_manager
            for agent in [name for name in list(manager.decode_kv_args_table) if name.startswith(f"{life}/")]:
                drop_agent(manager, agent)

    def drop_agent(manager: Any, agent: str) -> None:
        with registering:
            peer = forget_agent(manager, agent)
        if peer is not None:
            log.info("dropped the dead peer %s", agent)
            _unmap_soon(agent, peer)

    def forget_agent(manager: Any, agent: str) -> Any:
        peer = manager.decode_kv_args_table.pop(agent, None)
        if peer is None:
            return None
        for prepared in ("prep_handles", "prep_handles_slice_dst"):
            getattr(manager, prepared, {}).pop(agent, None)
        try:
            manager.agent.remove_remote_agent(agent)
        except Exception as error:  # noqa: BLE001 - NIXL's own error types; the peer is forgotten either way
            log.warning("NIXL could not remove the dead agent %s: %s", agent, error)
        return peer

    @instead_of(conn.NixlKVManager)
    def _add_remote_peer(self: Any, *args: Any, **kwargs: Any) -> Any:
        with registering:
            return _add_remote_peer.real(self, *args, **kwargs)

    @instead_of(conn.NixlKVManager)
    def record_failure(self: Any, bootstrap_room: int, *args: Any, **kwargs: Any) -> Any:
        agents = list(self.transfer_infos.get(bootstrap_room, ())) if hasattr(self, "transfer_infos") else []
        result = record_failure.real(self, bootstrap_room, *args, **kwargs)
        error = getattr(self, "exceptions", {}).get(bootstrap_room)
        if type(error).__name__ == "nixlRemoteDisconnectError":
            for agent in agents:
                drop_agent(self, agent)
        return result

    Scheduler.disagg_drop_peer = disagg_drop_peer
