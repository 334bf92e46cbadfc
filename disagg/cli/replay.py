"""`disagg bench replay`: a trace, on simulated engines in virtual time or on a running endpoint."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import click
import typer

from disagg import stopping
from disagg.cli.check import Sets

if TYPE_CHECKING:
    from disagg.replay.measures import Slo
    from disagg.replay.traces.trace import Trace

LOADS = (0.5, 0.7, 0.9, 1.0, 1.2)


def replay(
    trace: Annotated[
        Path, typer.Argument(help="A file in the form of Mooncake, Qwen-Bailian, Azure, or of agents; gzipped or not.")
    ],
    config: Annotated[
        str | None, typer.Option("--on", help="Simulate this deployment (`device: simulated`) in virtual time.")
    ] = None,
    url: Annotated[str | None, typer.Option("--url", help="Drive this running endpoint in real time.")] = None,
    sets: Sets = None,
    policies: Annotated[
        list[str] | None, typer.Option("--policy", help="With --on: by name or as module:Class; repeat to compare.")
    ] = None,
    loads: Annotated[
        list[float] | None, typer.Option("--load", min=0.01, help="With --on: a share of what it can carry.")
    ] = None,
    rates: Annotated[list[float] | None, typer.Option("--rate", min=1e-6, help="Requests a second.")] = None,
    speed: Annotated[float, typer.Option(min=1e-6, help="With --url: times the trace's own pace.")] = 1.0,
    requests: Annotated[int, typer.Option(min=10, help="How many of the trace.")] = 4000,
    seeds: Annotated[int, typer.Option(min=1, help="Each takes others, at other moments.")] = 1,
    frontends: Annotated[int, typer.Option(min=1, help="With --on: that share the requests.")] = 1,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", min=0, help="With --on: that clients allow; 0: the longest answer.")
    ] = 0,
    slo_ttft_ms: Annotated[float, typer.Option("--slo-ttft-ms", min=0, help="A good request's first token.")] = 2000,
    slo_itl_ms: Annotated[float, typer.Option("--slo-itl-ms", min=0, help="And its mean gap between tokens.")] = 50,
    processes: Annotated[int, typer.Option(min=1, help="With --on: that share the runs.")] = 1,
    model: Annotated[str, typer.Option(help="With --url: default: the first that it serves.")] = "",
    vocabulary: Annotated[
        int, typer.Option(min=1000, help="With --url: token ids of prompts are below this.")
    ] = 32_000,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all of it there.")] = None,
    picture_file: Annotated[Path | None, typer.Option("--picture", help="Write a chart there, as SVG.")] = None,
) -> None:
    """Replay a trace: TTFT, ITL, goodput, cache hits; policies side by side on simulated engines."""
    if (config is None) == (url is None):
        raise click.UsageError("say --on CONFIG or --url URL")
    if config is None and (policies or loads or frontends > 1):
        raise click.UsageError("--policy, --load and --frontends go with --on")
    from disagg.replay.measures import Slo
    from disagg.replay.traces.read import read_trace

    read, slo = read_trace(trace), Slo(slo_ttft_ms / 1e3, slo_itl_ms / 1e3)
    if url is not None:
        endpoint = (url.rstrip("/"), model, vocabulary)
        stopping.aside(lambda: _on_endpoint(read, endpoint, rates, speed, requests, slo, json_file))
        return
    from disagg.config.find import find_config
    from disagg.load import load_config
    from disagg.replay.compare import Load, compare
    from disagg.replay.deployment import pools_of
    from disagg.replay.simulate import Setting, Simulation
    from disagg.replay.told import as_tree, picture, table, warnings
    from disagg.routing.policy import load_policy

    names = policies or ["least_loaded"]
    for name in names:
        load_policy(name)
    assert config is not None
    setting = Setting(
        read, pools_of(load_config(find_config(config), sets or ())), requests, frontends, slo, max_tokens
    )

    def compared() -> None:
        capacity = 0.0
        wanted = [Load(f"{rate:g}/s", rate) for rate in rates or ()]
        if loads or not rates:
            capacity = Simulation(setting).capacity()
            print(f"{trace.name}: this deployment carries {capacity:.3g} requests/s with least_loaded")
            wanted += [Load(f"load {load:g}", load * capacity) for load in loads or LOADS]
        rows = compare(setting, names, wanted, range(1, seeds + 1), processes=processes)
        for line in table(rows):
            print(line)
        for line in warnings(rows):
            print(f"WARNING: {line}", file=sys.stderr)
        if json_file:
            json_file.write_text(f"{json.dumps(as_tree(setting, capacity, rows), indent=1)}\n")
        if picture_file:
            picture_file.write_text(picture(rows))

    compared()


def _on_endpoint(
    trace: Trace,
    endpoint: tuple[str, str, int],
    rates: list[float] | None,
    speed: float,
    requests: int,
    slo: Slo,
    json_file: Path | None,
) -> None:
    from dataclasses import asdict

    from disagg.replay.deployment import KV_BLOCK_TOKENS_MIN
    from disagg.replay.endpoint.replay import Endpoint, replay_on
    from disagg.replay.told import HEAD, NOTES, line_of
    from disagg.replay.workload import Sampler

    if rates is None and trace.own_rate is None:
        raise click.UsageError("this trace is a closed loop and has no pace of its own: say --rate")
    url, model, vocabulary = endpoint
    sampler = Sampler(trace, requests, KV_BLOCK_TOKENS_MIN)
    told = []
    print(HEAD)
    for rate in rates or [speed * (trace.own_rate or 0.0)]:
        at = Endpoint(url, model, os.environ.get("DISAGG_API_KEY", ""), vocabulary)
        measured, failures = asyncio.run(replay_on(at, sampler.plan(rate, 1), trace.block_tokens, slo))
        print(line_of(f"{rate:.3g} requests/s", measured))
        if failures:
            print(f"WARNING: {len(failures)} without an answer, the first: {failures[0]}", file=sys.stderr)
        told.append({"rate": rate} | asdict(measured))
    print(f"\n{NOTES}")
    if json_file:
        json_file.write_text(f"{json.dumps({'trace': trace.name, 'url': url, 'rows': told}, indent=1)}\n")


def step_times(
    model: Annotated[str, typer.Argument(help="By its Hugging Face name, such as Qwen/Qwen3-8B.")],
    gpu: Annotated[str, typer.Option(help="By aiconfigurator's name, such as h200_sxm.")],
    tp: Annotated[int, typer.Option(min=1, help="GPUs of a dp rank.")] = 1,
    dp: Annotated[int, typer.Option(min=1, help="Dp ranks of an engine.")] = 1,
    ep: Annotated[int, typer.Option(min=0, help="GPUs that share the experts; 0: as it chooses.")] = 0,
    prefill: Annotated[int, typer.Option(min=0, help="Prefill engines.")] = 1,
    decode: Annotated[int, typer.Option(min=0, help="Decode engines.")] = 1,
    aggregated: Annotated[int, typer.Option(min=0, help="Aggregated engines.")] = 0,
    chunk_tokens: Annotated[int, typer.Option("--chunk-tokens", min=256, help="Most tokens of a prefill step.")] = 8192,
    transfer_gbyte_s: Annotated[float, typer.Option("--transfer-gbyte-s", min=0.001, help="Of the lane for KV.")] = 40,
    transfer_setup_ms: Annotated[float, typer.Option("--transfer-setup-ms", min=0, help="And before a byte.")] = 2,
    out: Annotated[Path | None, typer.Option("--out", help="Write it there; default: print it.")] = None,
) -> None:
    """Write a simulated deployment whose engines take the time that aiconfigurator's tables give them."""
    from disagg.replay.step_times.source import Layout, Source
    from disagg.replay.step_times.yaml_file import fitted, yaml_of
    from disagg.roles import Role

    engines = {Role.PREFILL: prefill, Role.DECODE: decode, Role.AGGREGATED: aggregated}
    source = Source(model, gpu, Layout(tp, dp, ep))
    lane = {"transfer_setup_s": transfer_setup_ms / 1e3, "transfer_bytes_per_s": transfer_gbyte_s * 1e9}
    wanted = {role: count for role, count in engines.items() if count}
    text = yaml_of(source, fitted(source, chunk_tokens), wanted, chunk_tokens, lane)
    if out:
        out.write_text(text)
    else:
        print(text, end="")
