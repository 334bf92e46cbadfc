"""What the machine is: card, driver, versions, and how fast the card copies within itself.

Run:   python3 -m benchmarks.gpu.environment
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from typing import Any

from benchmarks.gpu.places import write_result
from disagg.installed import installed_version

PACKAGES = ("torch", "triton", "sglang", "sglang-kernel", "nixl", "nixl-cu13", "ray", "transformers", "tokenizers")
COPY_BYTES, COPIES = 2 << 30, 50


def main() -> None:
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "kernel": platform.release(),
        "cpus": os.cpu_count(),
        "packages": {name: installed_version(name) for name in PACKAGES},
        "gpus": _smi("name,memory.total,memory.used,driver_version,clocks.sm,clocks.mem"),
    }
    if found["gpus"]:
        found["copy_gbyte_s"] = _copy_gbyte_s()
    write_result("environment", found)
    print(json.dumps(found, indent=1))


def memory_used_mib() -> list[int]:
    """Of each card, by all processes."""
    return [int(used) for (used,) in _smi("memory.used")]


def _smi(fields: str) -> list[list[str]]:
    """A row a card."""
    if not shutil.which("nvidia-smi"):
        return []
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return [line.split(", ") for line in done.stdout.splitlines()] if done.returncode == 0 else []


def _copy_gbyte_s() -> float:
    """Bytes copied a second within the card (each is read once and written once)."""
    import torch

    size = min(COPY_BYTES, torch.cuda.mem_get_info()[0] // 4)
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    target.copy_(source)
    start.record()
    for _ in range(COPIES):
        target.copy_(source)
    end.record()
    torch.cuda.synchronize()
    return float(round(size * COPIES / (start.elapsed_time(end) / 1e3) / 1e9, 1))


if __name__ == "__main__":
    main()
