"""KV of an 8B Qwen3 shape from process to process on one GPU: adjacent and scattered pages, and what changes the price.

    python -m benchmarks.gpu.transfer --json transfer.json [--picture transfer.svg] [--gpu 0] [--only NAME…]

36 layers, K and V a buffer each, 2 KiB a token and buffer: 144 KiB a token. A row a variant, number of tokens and
layout; beside them the card's own copy rate, and what gathering the pages by indexed copies would cost.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from disagg.chart import chart
from disagg.errors import StartError
from transfer.lane_end import LaneEnd
from transfer.measure import doubts, spread

LAYERS, TOKEN_BYTES = 36, 2048  # of one buffer; two buffers a layer
TOKENS = (2000, 8000, 32000)
PAGES = (None, 16, 64)  # tokens; None: adjacent
ROUNDS = 9
TOKEN_WORD = {None: "adjacent", 16: "page 16", 64: "page 64"}


@dataclass(frozen=True, slots=True)
class Variant:
    name: str
    num_threads: int = 8  # as SGLang's prefill has
    env: dict[str, str] = field(default_factory=dict)
    tokens: tuple[int, ...] = TOKENS
    pages: tuple[int | None, ...] = PAGES


VARIANTS = (
    Variant("8 threads (SGLang's)"),
    Variant("SGL, 8 threads", env={"NIXL_UCX_SGL_ENABLE": "true"}),
    Variant("SGL, no threads", num_threads=0, env={"NIXL_UCX_SGL_ENABLE": "true"}),
    Variant("no threads", num_threads=0),
    Variant("2 threads", num_threads=2),
    Variant("16 threads", num_threads=16),
    Variant("cache off", env={"UCX_CUDA_IPC_CACHE": "n"}, tokens=TOKENS[:2]),
    Variant("SGL, cache off", env={"UCX_CUDA_IPC_CACHE": "n", "NIXL_UCX_SGL_ENABLE": "true"}, tokens=TOKENS[:2]),
    Variant("without cuda_ipc", env={"UCX_TLS": "^cuda_ipc"}, tokens=TOKENS[:1], pages=(None,)),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--gpu", type=int, default=0)
    parser.add_argument("--only", nargs="*", help="words in the names of variants")
    arguments = parser.parse_args()
    variants = [v for v in VARIANTS if not arguments.only or any(word in v.name for word in arguments.only)]
    told: dict[str, Any] = {"layers": LAYERS, "token_bytes": TOKEN_BYTES * LAYERS * 2}
    told |= {"python": platform.python_version(), "variants": []}
    with ExitStack() as closing:
        reader = _start(arguments.gpu, Variant("reader", num_threads=0), closing)
        coming = _start(arguments.gpu, variants[0], closing)
        offer = reader.offer()
        told |= _of_the_card(reader)
        print(f"copy {told['copy_gbyte_s']:.0f} GB/s; gathering by indexed copies: {told['gather_ms']} ms")
        print(HEAD, flush=True)
        for number, variant in enumerate(variants):
            writer = coming
            if number + 1 < len(variants):  # imports while this one is measured
                coming = _start(arguments.gpu, variants[number + 1], closing)
            told["variants"].append(_measured(variant, writer, offer))
            writer.close()
    if arguments.json:
        arguments.json.write_text(f"{json.dumps(told, indent=1)}\n")
    if arguments.picture:
        arguments.picture.write_text(picture_of(told))


def _start(gpu: int, variant: Variant, closing: ExitStack) -> LaneEnd:
    room = 2 * max(variant.tokens) * TOKEN_BYTES + 64 * TOKEN_BYTES  # scattered pages lie in twice their room
    end = LaneEnd(
        gpu,
        buffers=2 * LAYERS,
        buffer_bytes=room,
        num_threads=variant.num_threads,
        env=variant.env,
        program="benchmarks.gpu.end",
    )
    closing.callback(end.close)
    return end


def _of_the_card(end: LaneEnd) -> dict[str, Any]:
    copied = end.ask("copy", size_bytes=max(TOKENS) * TOKEN_BYTES)
    gathered = {}
    for tokens in TOKENS:
        size = tokens * TOKEN_BYTES * 2 * LAYERS
        gathered[tokens] = round(end.ask("gather_ms", size_bytes=size, page_bytes=16 * TOKEN_BYTES, rounds=ROUNDS), 2)
    return {"copy_gbyte_s": copied["bytes"] / median(copied["ms"]) / 1e6, "gather_ms": gathered}


def _measured(variant: Variant, writer: LaneEnd, offer: dict[str, Any]) -> dict[str, Any]:
    told: dict[str, Any] = {"name": variant.name, "num_threads": variant.num_threads, "env": variant.env, "rows": []}
    try:
        writer.offer()
        for row in _rows(variant, writer, offer):
            told["rows"].append(row)
            print(line_of(variant, row, told["rows"]), flush=True)
    except StartError as error:
        told["failed"] = str(error)
        print(f"{variant.name:<22} FAILED: {error}", flush=True)
    told["transport"] = writer.transport()
    told["warnings"] = list(doubts(told["transport"], on_gpu=True, near=True))
    for warning in told["warnings"]:
        print(f"{variant.name:<22} WARNING: {warning}", flush=True)
    return told


def _rows(variant: Variant, writer: LaneEnd, offer: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for tokens in variant.tokens:
        for page in variant.pages:
            written = writer.ask(
                "write",
                offer=offer,
                size_bytes=tokens * TOKEN_BYTES * 2 * LAYERS,
                page_bytes=page and page * TOKEN_BYTES,
                rounds=ROUNDS,
                warm=2,
            )
            ms = spread(written["ms"])
            yield {
                "tokens": tokens,
                "layout": TOKEN_WORD[page],
                "descriptors": written["descriptors"],
                "ms": ms._asdict(),
                "prepare_ms": median(written["prepare_ms"]),
                "us_a_descriptor": ms.median * 1e3 / written["descriptors"],
                "gbyte_s": written["bytes"] / ms.median / 1e6,
            }


HEAD = (
    f"{'variant':<22} {'tokens':>6} {'layout':<9} {'descriptors':>11} {'ms p50':>8} {'p10':>8} {'p90':>8} "
    f"{'prepare':>8} {'us/desc':>8} {'GB/s':>8} {'x adjacent':>10}"
)


def line_of(variant: Variant, row: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    adjacent = [other for other in rows if other["tokens"] == row["tokens"] and other["layout"] == TOKEN_WORD[None]]
    ratio = f"{row['ms']['median'] / adjacent[0]['ms']['median']:.1f}" if adjacent else ""
    return (
        f"{variant.name:<22} {row['tokens']:>6} {row['layout']:<9} {row['descriptors']:>11} "
        f"{row['ms']['median']:>8.2f} {row['ms']['p10']:>8.2f} {row['ms']['p90']:>8.2f} {row['prepare_ms']:>8.2f} "
        f"{row['us_a_descriptor']:>8.2f} "
        f"{row['gbyte_s']:>8.1f} {ratio:>10}"
    )


def picture_of(told: dict[str, Any]) -> str:
    lines = {}
    for variant in told["variants"][:3]:
        for layout in (TOKEN_WORD[None], TOKEN_WORD[16]):
            points = [(row["tokens"], row["ms"]["median"]) for row in variant["rows"] if row["layout"] == layout]
            if points:
                lines[f"{variant['name']}, {layout}"] = points
    return chart("KV of an 8B model, one GPU, process to process", lines, x_label="tokens", y_label="ms")


if __name__ == "__main__":
    main()
