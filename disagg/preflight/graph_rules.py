"""Whether every batch that may run has a CUDA graph: one without is launched kernel by kernel, and takes far longer.

Way:   Subject -> [graph_warnings] -> the log, and `disagg check`
Out:   warnings: the engine serves, and is slow exactly when it is busy
"""

from __future__ import annotations

from collections.abc import Iterator

from disagg.planning.memory import usual_graph_batch
from disagg.preflight.subject import PoolView, Subject


def graph_warnings(subject: Subject) -> Iterator[str]:
    """Warns of batches larger than the largest CUDA graph. Prefill pools have no decode batches. A pool without
    max_running_requests is not warned of: SGLang's default is thousands, and nobody has asked for so many at once."""
    if subject.device == "cpu":
        return
    for pool in subject.of_role("decode", "aggregated"):
        running = -(
            -pool.count("max_running_requests", 0) // pool.attention_dp
        )  # a rank's share, as graphs are a rank's
        if not running or pool.is_on("disable_cuda_graph") or pool.is_on("disable_decode_cuda_graph"):
            continue
        largest, whose = _largest(pool, subject)
        if 0 < largest < running:
            yield (
                f"{pool.at('max_running_requests')}: lets {running} requests run at once on a rank, and {whose} CUDA "
                f"graphs for up to {largest}: a step of more runs without, several times as long; "
                f"say cuda_graph_max_bs_decode: {running}, or fewer running requests"
            )


def _largest(pool: PoolView, subject: Subject) -> tuple[int, str]:
    """The largest batch that has a graph; 0 where that is not known."""
    sizes = pool.get("cuda_graph_bs_decode")
    if isinstance(sizes, list) and sizes and all(isinstance(size, int) for size in sizes):
        return max(sizes), "cuda_graph_bs_decode captures"
    if said := pool.count("cuda_graph_max_bs_decode", 0):
        return said, "cuda_graph_max_bs_decode captures"
    gpu = subject.smallest_gpu(pool)
    return (usual_graph_batch(pool.tp, gpu), f"SGLang on {gpu.name} captures") if gpu else (0, "")
