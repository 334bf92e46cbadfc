"""A program for test_dropping_waits_for_registering.py: a peer is told dead while SGLang's thread registers it."""

from __future__ import annotations

import json
import threading
import time
from types import SimpleNamespace
from typing import Any

from sglang.srt.disaggregation.nixl.conn import NixlKVManager
from sglang.srt.managers.scheduler import Scheduler

from disagg.sglang.plugins import transfer as hooks

AGENT = "decode-0#1/no identity/agent"
saw: list[str] = []
is_registering = threading.Event()


def register(self: Any, _peer: Any) -> None:
    """SGLang's ends its thread, and with it all bootstrapping, if the agent is gone in between."""
    self.decode_kv_args_table[AGENT] = SimpleNamespace(dst_kv_ptrs=[], dst_state_data_ptrs=[])
    is_registering.set()
    time.sleep(0.3)
    saw.append("registered" if AGENT in self.decode_kv_args_table else "lost in between")


NixlKVManager._add_remote_peer = register
hooks._dead_peers()
manager: Any = NixlKVManager.__new__(NixlKVManager)
manager.decode_kv_args_table = {}
manager.agent = SimpleNamespace(remove_remote_agent=lambda _agent: saw.append("removed"))
registering = threading.Thread(target=lambda: manager._add_remote_peer(None))
registering.start()
is_registering.wait()
scheduler: Any = SimpleNamespace(disagg_prefill_bootstrap_queue=SimpleNamespace(kv_manager=manager))
Scheduler.disagg_drop_peer(scheduler, "decode-0#1")
Scheduler.disagg_drop_peer(scheduler, "decode-0#1")  # told twice
registering.join()
print(json.dumps([*saw, len(manager.decode_kv_args_table)]))
