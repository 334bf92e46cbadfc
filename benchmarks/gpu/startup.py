"""Where the seconds of an engine's start go, and how long a killed one is away.

Way:   ours, ready -> SIGKILL of decode's and prefill's host in turns -> its log, each line stamped as it is written,
       and the states that `disagg status` tells -> seconds since the kill of each mark
Out:   results/startup.json

Run:   python3 -m benchmarks.gpu.startup [ROUNDS]
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu.places import profile, write_result
from benchmarks.gpu.servers import Server, engine_logs, only, ours, status, until_ready

ROUNDS, START_S, BACK_S, LOOK_S = 1, 240.0, 150.0, 0.02
# Of SGLang's and NIXL's own words; the first line of each kind counts.
MARKS = {
    "host imported SGLang": r"server_args=",
    "scheduler up": r"Init torch distributed begin|Load weight begin",
    "weights begin": r"Load weight begin",
    "weights end": r"Load weight end",
    "KV allocated": r"KV Cache is allocated",
    "graphs begin": r"Capture (cuda|decode).* graph begin|Capture .*graph.*begin",
    "graphs end": r"Capture .*graph.*end",
    "NIXL up": r"Backend UCX was instantiated",
}


def main() -> None:
    it = profile()
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    (server,) = only([ours("startup", it.config, it.token_models[0])])
    first_s = until_ready([server], START_S)[server.name]
    asyncio.run(_rounds(server, rounds, first_s))


async def _rounds(server: Server, rounds: int, first_s: float) -> None:
    found: dict[str, Any] = {"deployment_ready_s": round(first_s, 2), "lives": []}
    for number in range(rounds * 2):
        engine_id = ("decode-0", "prefill-0")[number % 2]
        found["lives"].append(await _life(server, engine_id))
        write_result("startup", found)
        print(found["lives"][-1], flush=True)
        await asyncio.sleep(2.0)


async def _life(server: Server, engine_id: str) -> dict[str, Any]:
    before = status(server)[engine_id]
    log = _log_of(engine_id)
    lines = _Lines(log)
    began_s = time.monotonic()
    os.kill(before["pids"]["host"], signal.SIGKILL)
    marks: dict[str, float] = {}
    async with asyncio.timeout(BACK_S):
        while "ready" not in marks:
            now_s = time.monotonic() - began_s
            for line in lines.read():
                for name, pattern in MARKS.items():
                    if name not in marks and re.search(pattern, line):
                        marks[name] = round(now_s, 2)
            await _state(server, engine_id, before["incarnation"], marks, began_s)
            await asyncio.sleep(LOOK_S)
    return {"engine": engine_id, "seconds_since_kill": dict(sorted(marks.items(), key=lambda mark: mark[1]))}


async def _state(server: Server, engine_id: str, incarnation: int, marks: dict[str, float], began_s: float) -> None:
    engine = (await asyncio.to_thread(status, server))[engine_id]
    if engine["incarnation"] <= incarnation:
        return
    now_s = round(time.monotonic() - began_s, 2)
    marks.setdefault("begun again", now_s)
    if engine["plane"]:
        marks.setdefault("host up", now_s)
    if engine["state"] == "ready":
        marks["ready"] = now_s


def _log_of(engine_id: str) -> Path:
    """The newest: one deployment runs."""
    return max(engine_logs().glob(f"*/{engine_id}.log"), key=lambda path: path.stat().st_mtime)


class _Lines:
    """What is written to a log from now on; a log that is rotated is followed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("rb")
        self._file.seek(0, os.SEEK_END)
        self._rest = b""

    def read(self) -> list[str]:
        data = self._file.read()
        if not data and self._path.stat().st_ino != os.fstat(self._file.fileno()).st_ino:
            self._file = self._path.open("rb")
            data = self._file.read()
        *whole, self._rest = (self._rest + data).split(b"\n")
        return [line.decode(errors="replace") for line in whole]


if __name__ == "__main__":
    main()
