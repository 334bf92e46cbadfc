"""In every scheduler: tells the host when a leg reaches a stage.

Way:   SGLang's own per-request clock (SchedulerReqTimeStats) -> [here] -> disagg/sglang/stages.py -> host
Cost:  one small datagram at each of a request's two or three stages; a decode step pays nothing
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from disagg.sglang import stages
from disagg.sglang.plugins.instead import instead_of

_voice: socket.socket | None = None  # of the one rank of a dp rank that speaks
_requests: WeakValueDictionary[str, Any] = WeakValueDictionary()  # by leg id, as long as the scheduler has them


def begin(folder: Path) -> None:
    """From now on this scheduler speaks."""
    global _voice
    _voice = stages.endpoint(folder)


def activate() -> None:
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.observability.req_time_stats import SchedulerReqTimeStats as Stats

    @instead_of(Req)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        __init__.real(self, *args, **kwargs)
        self.time_stats.disagg_leg_id = self.rid  # the clock does not know whose it is
        _requests[self.rid] = self

    def tell(setter: str, stage: str, when: Any = lambda _stats: True, *, tells_cached: bool = False) -> None:
        @instead_of(Stats, setter)
        def call(self: Any, *args: Any, **kwargs: Any) -> None:
            if _voice is not None and when(self):
                request = _requests.get(self.disagg_leg_id) if tells_cached else None
                stages.say(_voice, self.disagg_leg_id, stage, None if request is None else request.cached_tokens)
            call.real(self, *args, **kwargs)

    def prompt_begins(stats: Any) -> bool:
        """Told once a leg: SGLang reports it for each chunk, and a decode engine for its first step too."""
        return bool(stats.forward_entry_time == 0.0 and stats.disagg_mode.value != "decode")

    tell("set_prefill_bootstrap_queue_entry_time", "bootstrapping")
    tell("set_decode_prealloc_queue_entry_time", "bootstrapping")
    tell("set_forward_entry_time", "prefilling", prompt_begins)
    tell("set_prefill_transfer_queue_entry_time", "transferring", tells_cached=True)
    tell("set_decode_transfer_queue_entry_time", "transferring")
