"""Copies of a long prompt, one after the other, lie in the same memory: no page of it is fetched twice."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

COPIES, BYTES = 50, 400_000
PAGES = COPIES * BYTES // 4096
PROGRAM = f"""
import resource
from disagg.freed_memory import keep_freed_memory
{{}}
prompt = bytearray({BYTES})
for _ in range(3):
    bytes(prompt[4:])
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({COPIES}):
    bytes(prompt[4:])
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _faults(first: str) -> int:
    said = subprocess.run([sys.executable, "-c", PROGRAM.format(first)], capture_output=True, text=True, check=True)
    return int(said.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another malloc has other habits")
def test_pages_are_fetched_once() -> None:
    assert _faults("") > PAGES / 2  # else glibc does it by itself, and the module can go
    assert _faults("keep_freed_memory()") < PAGES / 20
