"""SGLang behind our engine interface: the only file that drives `sglang.Engine`.

Way:   plane server -> [SGLangEngine] -> TokenizerManager -> scheduler ranks, and back chunk by chunk
Fails: a leg's failure is its `on_end("error", …)`; a dead scheduler ends this whole process (SGLang's SIGQUIT)
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import os
import queue
import threading
from typing import Any

from disagg.engine.interface import EngineFacts, Leg, LegSink
from disagg.plane.messages import RankHealth, RankLoad

log = logging.getLogger(__name__)

REASONS = {"stop": "stop", "length": "length"}  # SGLang's finish types that are not failures


class SGLangEngine:
    """One `sglang.Engine` in this process's main thread."""

    def __init__(self, arguments: dict[str, Any], *, fork: bool) -> None:
        self._arguments, self._fork = arguments, fork
        self._engine: Any = None
        self._dead_peers: queue.SimpleQueue[str] = queue.SimpleQueue()

    def start(self) -> EngineFacts:
        if self._fork:
            _fork_children()
        from sglang.srt.entrypoints.engine import Engine

        engine = self._engine = Engine(**self._arguments)
        info = engine._scheduler_init_result.scheduler_infos[0]
        threading.Thread(target=self._tell_schedulers, name="dead peers", daemon=True).start()
        return EngineFacts(
            ranks=_dp_ranks(engine.server_args),
            context_length=int(engine.tokenizer_manager.model_config.context_len),
            kv_tokens=int(info["max_total_num_tokens"]),
            # One more than the prompt must fit, and SGLang refuses prompts longer than max_req_input_len.
            request_tokens_max=int(info["max_req_input_len"]) + 1,
            requests_max=int(info.get("max_running_requests") or engine.server_args.max_running_requests or 1),
            page_size=int(engine.server_args.page_size or 1),
            pids={"host": os.getpid(), **_children(engine)},
        )

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop that this engine's asyncio parts were made for."""
        loop: asyncio.AbstractEventLoop = self._engine.loop
        return loop

    def submit(self, leg: Leg, sink: LegSink) -> object:
        handle = _SGLangLeg(leg, sink, self._engine.tokenizer_manager)
        handle.task = asyncio.get_running_loop().create_task(handle.run(self._engine), name=f"leg {leg.id}")
        return handle

    def abort(self, handle: object) -> None:
        assert isinstance(handle, _SGLangLeg)
        handle.abort()

    def loads(self) -> list[RankLoad]:
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

    def health(self) -> list[RankHealth]:
        return []

    def drop_peer(self, life: str) -> None:
        self._dead_peers.put(life)

    def stop(self) -> None:
        self._engine.shutdown()

    def _tell_schedulers(self) -> None:
        """SGLang's RPC blocks until the scheduler has answered, which may be a whole prefill chunk later."""
        while True:
            life = self._dead_peers.get()
            try:
                self._engine.collective_rpc("disagg_drop_peer", life=life)
            except Exception:
                log.exception("the schedulers could not be told that %s is dead", life)


class _SGLangLeg:
    """One request inside SGLang, from submit to its last chunk."""

    def __init__(self, leg: Leg, sink: LegSink, tokenizer_manager: Any) -> None:
        self.leg, self._sink, self._manager = leg, sink, tokenizer_manager
        self.task: asyncio.Task[None] | None = None
        self._abort_asked = False

    async def run(self, engine: Any) -> None:
        reason, detail, cached = "error", "the stream ended without a reason", 0
        try:
            stream = await engine.async_generate(**_generate_arguments(self.leg))
            async with contextlib.aclosing(stream):
                async for chunk in stream:
                    meta = chunk["meta_info"]
                    finish = meta.get("finish_reason")
                    failed = finish is not None and finish["type"] not in REASONS
                    if chunk.get("output_ids") and not failed:
                        self._sink.on_tokens(chunk["output_ids"])
                    if finish is not None:
                        cached = int(meta.get("cached_tokens") or 0)
                        reason, detail = REASONS.get(finish["type"], "error"), str(finish.get("message") or "")
        except asyncio.CancelledError:
            reason, detail = "abort", ""  # only `abort` cancels this task, and it has told SGLang
        except Exception as error:  # noqa: BLE001 - SGLang refused this leg (ValueError, HTTPException, …)
            reason, detail = "error", str(getattr(error, "detail", None) or error)
        if self._abort_asked and reason == "error":
            reason = "abort"
        moments = getattr(self._manager, "disagg_moments", {})  # kept by transfer/hooks.py
        self._sink.on_end(reason, detail, cached, moments.pop(self.leg.id, {}))

    def abort(self) -> None:
        """Cancelling the consumer makes SGLang drop a request it has not dispatched, or abort one it has."""
        if self.task is not None and not self.task.done() and not self._abort_asked:
            self._abort_asked = True
            self._manager.abort_request(rid=self.leg.id)
            self.task.cancel()


def _generate_arguments(leg: Leg) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "input_ids": leg.prompt_ids,
        "sampling_params": leg.sampling,
        "rid": leg.id,
        "stream": True,
        "routed_dp_rank": leg.dp_rank,
    }
    if leg.bootstrap is not None:
        arguments |= {
            "bootstrap_host": leg.bootstrap.host,
            "bootstrap_port": leg.bootstrap.port,
            "bootstrap_room": leg.bootstrap.room,
            "disagg_prefill_dp_rank": leg.bootstrap.prefill_dp_rank,
        }
    return arguments


def _fork_children() -> None:
    """SGLang insists on "spawn" when it starts its processes; here everything is imported already."""
    real = multiprocessing.set_start_method

    def set_start_method(_method: str | None, force: bool = False) -> None:
        real("fork", force=True)

    multiprocessing.set_start_method = set_start_method  # type: ignore[assignment]


def _dp_ranks(server_args: Any) -> int:
    """Dp ranks of an engine; SGLang 0.5.23 moved them from dp_size to attn_dp_size."""
    return max(int(getattr(server_args, "attn_dp_size", 1) or 1), int(server_args.dp_size or 1))


def _children(engine: Any) -> dict[str, int | list[int]]:
    """Pids by what they do, read from the titles that SGLang gives its processes."""
    roles: dict[str, list[int]] = {"schedulers": [], "detokenizers": [], "others": []}
    for pid in engine.get_all_child_pids():
        with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
            title = file.read().replace(b"\0", b" ").decode(errors="replace")
            kind = "schedulers" if "scheduler" in title else "detokenizers" if "detokenizer" in title else "others"
            roles[kind].append(pid)
    return {kind: pids for kind, pids in roles.items() if pids}
