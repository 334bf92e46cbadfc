"""A process that speaks to etcd may start others: gRPC does nothing in a child between fork and exec."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import disagg.registry.MODULE
import asyncio, subprocess, sys
import grpc.aio

async def main():
    channel = grpc.aio.insecure_channel("127.0.0.1:9")
    call = channel.unary_unary("/a/b")(b"", timeout=5, wait_for_ready=True)
    await asyncio.sleep(0.2)
    for _ in range(5):
        subprocess.run([sys.executable, "-S", "-c", ""], preexec_fn=lambda: None, check=True)
    call.cancel()
    await channel.close()

asyncio.run(main())
"""


@pytest.mark.parametrize("module", ["etcd_store", "etcd_members"])
def test_grpc_does_nothing_in_a_child(module: str) -> None:
    program = PROGRAM.replace("MODULE", module)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
