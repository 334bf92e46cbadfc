"""What becomes of a dead peer's GPU memory, and what it costs to get it back: each way beside the others, in one run.

    python -m benchmarks.gpu.dead_peer --json dead_peer.json [--gpu 0] [--buffers 56] [--buffer-mib 72] [--only NAME…]

A writer (as a prefill) writes over NIXL to two readers (as decodes). One is SIGKILLed; the other must not notice.
A row a variant: ms a transfer before and after, MB of the card that are still used some seconds after the kill, whether
the living reader and a new one are written to, and right.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from disagg.errors import StartError
from transfer.ipc_cache import QUIET_S
from transfer.lane_end import LaneEnd

AFTER_S = (0.5, 2.0, 10.0)
ACT_AFTER_S = 0.1  # what a variant does, it does so long after the kill
ROUNDS = 25
OUTSIDE_S = 1.0  # between the end of a process and the card's word for it


@dataclass(frozen=True, slots=True)
class Variant:
    name: str
    env: dict[str, str] = field(default_factory=dict)
    removes: bool = True  # NIXL's remove_remote_agent, as SGLang's hook does for a dead peer
    act: str = ""  # then: "unmap" (transfer/ipc_cache.py), or "restart" of the writer
    mid_write: bool = False  # killed under a write, and what is done is done after ipc_cache's quiet time


VARIANTS = (
    Variant("UCX's defaults, nothing done", removes=False),
    Variant("UCX forgets the peer", act="unmap"),
    Variant("the same, killed mid-write", act="unmap", mid_write=True),
    Variant("UCX_CUDA_IPC_CACHE=n", {"UCX_CUDA_IPC_CACHE": "n"}),
    Variant("the writer restarted", act="restart", removes=False),
    Variant("remove_remote_agent"),
    Variant("UCX_CUDA_IPC_CACHE_MAX_REGIONS=8", {"UCX_CUDA_IPC_CACHE_MAX_REGIONS": "8"}),
    Variant("UCX_CUDA_IPC_CACHE_MAX_SIZE=512M", {"UCX_CUDA_IPC_CACHE_MAX_SIZE": "512M"}),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--gpu", type=int, default=0)
    parser.add_argument("--buffers", type=int, default=56)
    parser.add_argument("--buffer-mib", type=int, default=72)
    parser.add_argument("--transfer-mib", type=int, default=224, help="of each write; 2,000 tokens of 28 layers")
    parser.add_argument("--threads", type=int, default=8, help="NIXL's, as SGLang's prefill has")
    parser.add_argument("--only", nargs="*", help="words in the names of variants")
    arguments = parser.parse_args()
    rows = []
    print(HEAD)
    for variant in VARIANTS:
        if arguments.only and not any(word in variant.name for word in arguments.only):
            continue
        rows.append(_row(variant, arguments))
        print(line_of(rows[-1]), flush=True)
        if arguments.json:  # after each: time may run out
            _write(arguments, rows)


def _write(arguments: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    told = {"buffers": arguments.buffers, "buffer_mib": arguments.buffer_mib, "python": platform.python_version()}
    told |= {"transfer_mib": arguments.transfer_mib, "threads": arguments.threads, "rows": rows}
    arguments.json.write_text(f"{json.dumps(told, indent=1)}\n")


def _row(variant: Variant, arguments: argparse.Namespace) -> dict[str, Any]:
    row: dict[str, Any] = {"variant": variant.name, "env": variant.env}
    try:
        with ExitStack() as closing:
            row |= _measured(variant, arguments, closing)
    except (StartError, OSError) as error:
        row["failed"] = str(error)
    time.sleep(OUTSIDE_S)
    return row


def _measured(variant: Variant, arguments: argparse.Namespace, closing: ExitStack) -> dict[str, Any]:
    def start(env: dict[str, str]) -> LaneEnd:
        end = LaneEnd(
            arguments.gpu,
            buffers=arguments.buffers,
            buffer_bytes=arguments.buffer_mib << 20,
            num_threads=arguments.threads,
            env=env,
            program="benchmarks.gpu.end",
        )
        closing.callback(end.close)
        return end

    def write(offer: dict[str, Any]) -> dict[str, float]:
        times = writer.ask("write", offer=offer, size_bytes=arguments.transfer_mib << 20, rounds=ROUNDS, warm=0)["ms"]
        return {"first_ms": times[0], "ms": median(times[1:])}

    writer, living, doomed = start(variant.env), start({}), start({})  # all three import at the same time
    writer.offer()
    living_offer = living.offer()
    doomed_offer = doomed.offer()
    who = doomed.ask("who")
    row: dict[str, Any] = {
        "living": write(living_offer),
        "doomed": write(doomed_offer),
        "transport": writer.transport(),
    }
    before_mb = writer.ask("used_mb")

    killed_s = time.monotonic()
    if variant.mid_write:
        size_bytes = arguments.transfer_mib << 20
        row["mid_write"] = writer.ask("write_past_a_kill", offer=doomed_offer, size_bytes=size_bytes, pid=doomed.pid)
    else:
        os.kill(doomed.pid, signal.SIGKILL)
        time.sleep(ACT_AFTER_S)
    if variant.removes:
        writer.ask("forget", offer=doomed_offer)
    if variant.mid_write:
        time.sleep(QUIET_S)
    if variant.act == "unmap":
        row["acted"] = writer.ask("unmap", peer=who, addresses=doomed_offer["memory"]["addresses"])
    elif variant.act == "restart":
        writer.close()
        writer = start(variant.env)
        writer.offer()
        row["acted"] = f"{time.monotonic() - killed_s:.1f} s"
    used_mb = {}
    for after_s in AFTER_S:
        time.sleep(max(0.0, killed_s + after_s - time.monotonic()))
        used_mb[f"{after_s:g}"] = writer.ask("used_mb")

    row["living_after"] = write(living_offer)
    without_mb = writer.ask("used_mb")
    follower = start({})
    follower_offer = follower.offer()
    # Such a process takes its pool and its CUDA context: what the dead one has not given back of that.
    row["reader_mb"] = writer.ask("used_mb") - without_mb
    row["still_used_mb"] = {after: row["reader_mb"] - (before_mb - used) for after, used in used_mb.items()}
    writer.ask("fill", value=77)
    row["follower"] = write(follower_offer)
    write(living_offer)
    row["follower_is_right"] = set(follower.ask("first_bytes")) == {77}
    row["living_is_right"] = set(living.ask("first_bytes")) == {77}
    return row


HEAD = (
    f"{'variant':<34} {'first ms':>8} {'ms p50':>7} | {'MB still used after':>20} 0.5/2/10 s | {'living':>7} "
    f"{'new':>7}  right"
)


def line_of(row: dict[str, Any]) -> str:
    if "failed" in row:
        return f"{row['variant']:<34} FAILED: {row['failed']}"
    used = "/".join(f"{row['still_used_mb'][f'{after:g}']:.0f}" for after in AFTER_S)
    return (
        f"{row['variant']:<34} {row['doomed']['first_ms']:>8.2f} {row['doomed']['ms']:>7.2f} | {used:>31} | "
        f"{row['living_after']['ms']:>7.2f} {row['follower']['ms']:>7.2f}  "
        f"{row['follower_is_right'] and row['living_is_right']} {row.get('acted', '')}"
    )


if __name__ == "__main__":
    main()
