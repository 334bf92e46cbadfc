"""What a streamed token costs in an engine's host: SGLang's TokenizerManager and our plane server, before a scheduler
that costs it nothing.

Way:   `python -m benchmarks.engine_host` -> for each way: a host process with a real SGLangEngine, whose scheduler is
       the one below, in a process of its own -> legs over the plane -> CPU of the host over its tokens
Out:   SGLang's own way against the short one (disagg/sglang/fast_path.py), in alternating rounds
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import time
from array import array
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.legs import send
from benchmarks.processes import cpu_s, running, serve
from disagg.cpu_profile.paths import standin_environment
from disagg.plane.client import PlaneClient
from disagg.sglang.fast_path import VARIABLE

LEGS, STEP_S, WINDOW_S, ROUNDS = 512, 0.05, 4.0, 3
TOKENS = 4096
START_S = 300.0
ENVIRONMENT = {"SGLANG_USE_CPU_ENGINE": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
FACTS = {"max_req_input_len": 8000, "max_total_num_tokens": 1 << 22, "status": "ready"}


def scheduler(_server_args: Any, port_args: Any, *rest: Any) -> None:
    """In SGLang's place: a token for each request, each STEP_S."""
    import zmq
    from sglang.srt.managers import io_struct

    context = zmq.Context()
    came, out = context.socket(zmq.PULL), context.socket(zmq.PUSH)
    came.connect(port_args.scheduler_input_ipc_name)
    out.connect(port_args.tokenizer_ipc_name)
    next(each for each in rest if hasattr(each, "send")).send(FACTS)
    running: list[str] = []
    template = _filled(io_struct.BatchTokenIDOutput)
    while True:
        while came.poll(0):
            message = io_struct.sock_recv(came)
            if type(message).__name__ == "TokenizedGenerateReqInput":
                running.append(message.rid)
            elif type(message).__name__ == "BatchTokenizedGenerateReqInput":
                running += [each.rid for each in message.batch]
        if running:
            io_struct.sock_send(out, template(running))
        time.sleep(STEP_S)


def _filled(kind: Any) -> Any:
    """Messages with a token for each request; what is not told is as SGLang sends it when nobody asked."""
    per_request = {
        "finished_reasons": None,
        "decoded_texts": "",
        "decode_ids": array("i", [260]),
        "read_offsets": 0,
        "output_ids": array("i", [260]),
        "skip_special_tokens": True,
        "spaces_between_special_tokens": True,
        "no_stop_trim": False,
        "prompt_tokens": 46,
        "reasoning_tokens": 0,
        "completion_tokens": 1,
        "cached_tokens": 0,
        "retraction_counts": 0,
    }

    def make(rids: list[str]) -> Any:
        fields: dict[str, Any] = dict.fromkeys(kind.__struct_fields__)
        fields |= {name: [value] * len(rids) for name, value in per_request.items() if name in fields}
        return kind(**fields | {"rids": rids})

    return make


async def cost(way: str) -> float:
    """CPU µs of the host a token."""
    secret = secrets.token_bytes(32)
    with TemporaryDirectory() as scratch:
        environment = standin_environment(os.environ) | ENVIRONMENT
        environment |= {"DISAGG_SECRET": secret.hex(), "TMPDIR": scratch, VARIABLE: way}
        # At its end of input SGLang ends its processes, and takes away what it has in /dev/shm.
        process = running("benchmarks.engine_host", "--host", scratch, limit_s=START_S, environment=environment)
        async with process as (pid, port):
            return await _measure(pid, port, secret)


async def _measure(pid: int, port: int, secret: bytes) -> float:
    client = PlaneClient(f"127.0.0.1:{port}", 1, secret, lambda _why: None)
    await client.connect()
    sampling = {"max_new_tokens": TOKENS, "ignore_eos": True}
    legs = [send(client, number, sampling) for number in range(LEGS)]
    async with asyncio.timeout(30):
        while not all(leg.tokens for leg in legs):
            assert all(leg.end is None for leg in legs), next(leg.end for leg in legs if leg.end)
            await asyncio.sleep(0.1)
    await asyncio.sleep(1)
    before, tokens = cpu_s([pid]), sum(leg.tokens for leg in legs)
    await asyncio.sleep(WINDOW_S)
    used, came = cpu_s([pid]) - before, sum(leg.tokens for leg in legs) - tokens
    client.close()
    assert came > 0.5 * LEGS * WINDOW_S / STEP_S, f"only {came} tokens came"
    return used * 1e6 / came


def host(scratch: str) -> None:
    """A host as disagg/process/host.py makes it, on a CPU, with the scheduler above."""
    from sglang.srt.entrypoints.engine import Engine

    from disagg.models.resolve import resolve_model
    from disagg.plane.server import PlaneServer
    from disagg.sglang import engine as sglang_engine

    Engine.run_scheduler_process_func = staticmethod(scheduler)
    sglang_engine._capacity = lambda _scratch: {"kv_tokens": 1 << 22, "requests_max": 4096, "page_size": 1}
    arguments = {
        "model_path": str(resolve_model("smollm2")),
        "device": "cpu",
        "skip_tokenizer_init": True,
        "incremental_streaming_output": True,
        "attention_backend": "torch_native",
        "log_level": "error",
    }
    engine = sglang_engine.SGLangEngine(arguments, fork=False, scratch=Path(scratch))
    facts = engine.start()

    async def served() -> None:
        server = PlaneServer(engine, facts, 1, bytes.fromhex(os.environ["DISAGG_SECRET"]))
        await serve(await server.start("127.0.0.1"))
        engine.stop()

    engine.loop.run_until_complete(served())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.host:
        host(arguments.host)
        return
    costs: dict[str, list[float]] = {"0": [], "1": []}
    for _ in range(arguments.rounds):
        for way, got in costs.items():
            got.append(asyncio.run(cost(way)))
    long_us, short_us = median(costs["0"]), median(costs["1"])
    print(f"host's CPU a token, {LEGS} streams: SGLang's way {long_us:.1f} µs, fast path {short_us:.1f} µs")
    if arguments.json:
        arguments.json.write_text(json.dumps({"long_us": costs["0"], "short_us": costs["1"]}) + "\n")


if __name__ == "__main__":
    main()
