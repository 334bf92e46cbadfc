"""`disagg bench`: what this machine, or a cluster, can do; `replay` is in a file of its own."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click
import typer

from disagg import stopping
from disagg.cli.replay import replay, step_times

if TYPE_CHECKING:
    from transfer.measure import Row

app = typer.Typer(no_args_is_help=True)
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
NODE = "A node of the Ray cluster, by name or address; else this machine."
SIZES = "64K,256K,1M,4M,16M,64M,256M,1G"


class Memory(StrEnum):
    dram = "dram"
    vram = "vram"


class Layout(StrEnum):
    contiguous = "contiguous"
    scattered = "scattered"
    both = "both"


app.command()(replay)
app.command("step-times")(step_times)


@app.command()
def transfer(
    source: Annotated[str | None, typer.Option("--from", help=NODE)] = None,
    target: Annotated[str | None, typer.Option("--to", help=NODE)] = None,
    address: Annotated[str, typer.Option("--address", help="The Ray cluster's, with --from and --to.")] = "auto",
    memory: Annotated[Memory, typer.Option(help="Of the host, or of a GPU.")] = Memory.dram,
    gpu_from: Annotated[int, typer.Option("--gpu-from", help="With --memory vram: the writer's GPU.")] = 0,
    gpu_to: Annotated[int, typer.Option("--gpu-to", help="With --memory vram: the GPU that is written to.")] = 0,
    sizes: Annotated[str, typer.Option(help="Bytes, with K, M or G.")] = SIZES,
    layout: Annotated[Layout, typer.Option(help="Scattered: no two pages are adjacent.")] = Layout.both,
    page_bytes: Annotated[str, typer.Option("--page-bytes", help="Of one scattered page, in one buffer.")] = "32K",
    rounds: Annotated[int, typer.Option(min=1, help="Writes a row; a large row stops after 5 s.")] = 15,
    num_threads: Annotated[int, typer.Option("--num-threads", min=0, help="NIXL's; SGLang's prefill has 8.")] = 0,
    ucx: Annotated[list[str] | None, typer.Option("--ucx", help="UCX_KEY=VALUE, for both ends.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all of it there.")] = None,
    picture: Annotated[Path | None, typer.Option("--picture", help="Write a chart there, as SVG.")] = None,
) -> None:
    """Measure NIXL between two processes: sizes, adjacent and scattered pages, beside the machine's own copies."""
    if (source is None) != (target is None):
        raise click.UsageError("say both --from and --to, or neither")
    wanted = [size_of(word) for word in sizes.split(",")]
    page = size_of(page_bytes)
    env = environment_of(ucx or ())
    # Scattered pages lie in twice their room, and a copy has its source and its target in one buffer.
    room = max(-(-size // page) * page for size in wanted)
    about: dict[str, Any] = {"buffer_bytes": 2 * room, "num_threads": num_threads, "env": env}
    gpus = (gpu_from, gpu_to) if memory is Memory.vram else (None, None)
    layouts: dict[str, int | None] = {"contiguous": None, "scattered": page}
    if layout is Layout.scattered and max(wanted) < page:
        raise click.UsageError(
            f"no size is as large as a page of {size_word(page)}; say --page-bytes, or larger --sizes"
        )
    if layout is not Layout.both:
        layouts = {layout.value: layouts[layout.value]}

    from transfer.measure import doubts, measure

    def measured() -> tuple[list[Row], str]:
        with _ends(source, target, address, gpus, about) as (writer, reader):
            said = lambda row: print(line_of(row))  # noqa: E731
            rows = measure(writer, reader, wanted, page_bytes=layouts, rounds=rounds, said=said)
            return rows, writer.transport()

    print(HEAD)
    rows, transport = stopping.aside(measured)
    near = source == target
    warnings = list(doubts(transport, on_gpu=memory is Memory.vram, near=near))
    copied = "device-to-device copy" if memory is Memory.vram else "memcpy by one core"
    print(f"\ntransport: {transport or 'not told'}; copy: {copied} on the writer's side; rounds: {rounds}")
    for warning in warnings:
        print(f"WARNING: {warning}", file=sys.stderr)
    told = {
        "from": {"node": source, "gpu": gpus[0]},
        "to": {"node": target, "gpu": gpus[1]},
        "memory": memory.value,
        "page_bytes": page,
        "num_threads": num_threads,
        "ucx": env,
        "transport": transport,
        "fell_back_to_tcp": near and "tcp" in transport.split("+"),
        "warnings": warnings,
        "rows": [{**asdict(row), "ms": row.ms._asdict()} for row in rows],
    }
    if json_file:
        json_file.write_text(f"{json.dumps(told, indent=1)}\n")
    if picture:
        picture.write_text(picture_of(rows, f"NIXL, {memory.value}, {transport or 'transport not told'}"))


HEAD = (
    f"{'layout':<11} {'size':>8} {'descriptors':>11} {'ms p50':>9} {'p10':>9} {'p90':>9} {'prepare':>8} "
    f"{'us/desc':>8} {'GB/s':>8} {'copy GB/s':>10}"
)


def line_of(row: Row) -> str:
    return (
        f"{row.layout:<11} {size_word(row.bytes):>8} {row.descriptors:>11} {row.ms.median:>9.3f} {row.ms.p10:>9.3f} "
        f"{row.ms.p90:>9.3f} {row.prepare_ms:>8.3f} {row.us_a_descriptor:>8.2f} {row.gbyte_s:>8.2f} "
        f"{row.copy_gbyte_s:>10.2f}"
    )


def picture_of(rows: Sequence[Row], title: str) -> str:
    from disagg.chart import chart

    lines = {
        name: [(row.bytes, row.gbyte_s) for row in rows if row.layout == name] for name in {r.layout: 0 for r in rows}
    }
    lines["the machine's own copy"] = sorted({row.bytes: row.copy_gbyte_s for row in rows}.items())
    return chart(title, lines, x_label="bytes", y_label="GB/s", x_word=lambda value: size_word(int(value)))


def size_of(word: str) -> int:
    number = word.strip().upper().removesuffix("B").removesuffix("I")
    unit = number[-1:] if number[-1:] in UNITS else ""
    digits = number.removesuffix(unit) if unit else number
    if not digits.isdigit() or int(digits) < 1:
        raise click.UsageError(f"{word!r} is no size; say 65536, 64K, 1M or 1G")
    return int(digits) * UNITS[unit]


def size_word(size_bytes: int) -> str:
    for unit in ("G", "M", "K"):
        if size_bytes >= UNITS[unit]:
            return f"{size_bytes / UNITS[unit]:.3g}{unit}"
    return str(size_bytes)


def environment_of(words: Sequence[str]) -> dict[str, str]:
    pairs = [word.partition("=") for word in words]
    for key, equals, _ in pairs:
        if not equals or not key.startswith(("UCX_", "NIXL_")):
            raise click.UsageError(f"--ucx {key!r}: say UCX_KEY=VALUE (NIXL_KEY=VALUE is taken, too)")
    return {key: value for key, _, value in pairs}


def _ends(
    source: str | None, target: str | None, address: str, gpus: Sequence[int | None], about: dict[str, Any]
) -> Any:
    """A context of (writer, reader)."""
    if source is None or target is None:
        from transfer.lane_end import ends_here

        return ends_here(gpus, about)
    from disagg.cluster.cluster_inspect import ends_on_cluster

    return ends_on_cluster(address, (source, target), gpus, about)
