"""How long KV takes from one end to another, by size and layout, beside this machine's own copies.

Way:   `disagg bench transfer`, benchmarks/gpu/transfer.py -> [measure] -> two ends (lane_end.py) -> Measured
Out:   plain data, for a table, JSON and a picture; what looks wrong about the lane, in words
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any, NamedTuple, Protocol

GPU_LANES = ("cuda_ipc", "rc", "dc", "ud", "gdr", "srd")  # as UCX's names begin


class AnEnd(Protocol):
    """A LaneEnd, or an actor that is one."""

    def offer(self) -> dict[str, Any]: ...
    def ask(self, what: str, **arguments: Any) -> Any: ...
    def transport(self) -> str: ...


class Spread(NamedTuple):
    median: float
    p10: float
    p90: float


@dataclass(frozen=True, slots=True)
class Row:
    layout: str  # contiguous, scattered
    bytes: int
    descriptors: int
    ms: Spread  # from the post to the end
    prepare_ms: float  # descriptor lists and the handle, before the post: every transfer has its own
    gbyte_s: float
    copy_gbyte_s: float  # the machine's own copy of as much; 0: not measured

    @property
    def us_a_descriptor(self) -> float:
        return self.ms.median * 1e3 / self.descriptors


def spread(values: Sequence[float]) -> Spread:
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    tenths = quantiles(values, n=10, method="inclusive")
    return Spread(median(values), tenths[0], tenths[-1])


def measure(
    source: AnEnd,
    target: AnEnd,
    sizes: Sequence[int],
    *,
    page_bytes: dict[str, int | None],
    rounds: int,
    said: Callable[[Row], None] = lambda _row: None,
) -> list[Row]:
    """`page_bytes`: by layout; None is contiguous. `said` hears of every row as it comes."""
    source.offer()  # both ends are up before time is taken
    offer = target.offer()
    copies = {size: _rate(source.ask("copy", size_bytes=size)) for size in sizes}
    rows = []
    for layout, page in page_bytes.items():
        for size in sizes:
            if page and page > size:
                continue
            written = source.ask("write", offer=offer, size_bytes=size, page_bytes=page, rounds=rounds)
            ms = spread(written["ms"])
            row = Row(
                layout=layout,
                bytes=written["bytes"],
                descriptors=written["descriptors"],
                ms=ms,
                prepare_ms=median(written["prepare_ms"]),
                gbyte_s=written["bytes"] / ms.median / 1e6,
                copy_gbyte_s=copies[size],
            )
            said(row)
            rows.append(row)
    return rows


def doubts(transport: str, *, on_gpu: bool, near: bool) -> Iterator[str]:
    """Warnings about the lane that UCX took, so that its rates are not mistaken for the machine's."""
    names = transport.split("+") if transport else []
    if not names:
        yield "UCX did not say what carried it"
    elif "tcp" in names and near:
        yield "TCP CARRIED IT, on one machine: shared memory or CUDA IPC did not come up; see `ucx_info -d`, UCX_TLS"
    elif on_gpu and not any(name.startswith(GPU_LANES) for name in names):
        yield f"NO GPU LANE: {transport} goes through the host's memory; see `ucx_info -d`, UCX_TLS"


def _rate(copied: dict[str, Any]) -> float:
    return float(copied["bytes"] / median(copied["ms"]) / 1e6)
