"""Whether a rank's weights, and the KV of one request, can be in the memory of its GPU, or of its node, at all.

Way:   Subject with a model and placed engines -> [these rules] -> Problems
Out:   refusals that are certain: nothing is counted for activations and graphs. An engine with a part of a GPU has
       that part of its memory, so that what is let through also fits beside its neighbours. What SGLang will really
       have left is `disagg check`'s estimate (disagg/planning/memory.py)
"""

from __future__ import annotations

from collections.abc import Iterator

from disagg.errors import Problem
from disagg.models.facts import ModelFacts
from disagg.planning.cluster_shape import GIB
from disagg.planning.gpu_kinds import GpuKind
from disagg.planning.memory import kv_bytes_of_rank, weight_bytes_of_rank
from disagg.preflight.rule import rule
from disagg.preflight.subject import PoolView, Subject

STATIC_SHARE_MOST = 0.95  # of the memory, where mem_fraction_static is not said; SGLang takes less


@rule("sglang #322, #4895", "take more ranks, larger GPUs, or a quantised version of the model")
def _model_fits(subject: Subject) -> Iterator[Problem]:
    """every rank loads for minutes and stops: 'Not enough memory. Please try to increase --mem-fraction-static'"""
    for pool, model, gpu, static in _gpus(subject):
        weights = weight_bytes_of_rank(pool.arguments, model)
        if weights > static:
            of_gpu = gpu.name if pool.gpu_share == 1 else f"{pool.gpu_share:g} of {gpu.name}"
            what = f"is {pool.tp}: a rank needs {_gib(weights)} for weights, and {_static(pool, static)} of {of_gpu}"
            yield Problem(pool.at("tp_size"), what)


@rule("", "take a smaller model, fewer engines on that node, or a node with more memory")
def _model_fits_host(subject: Subject) -> Iterator[Problem]:
    """the kernel ends the engines, or others there, while they load: killed, without a word of their own

    On a CPU every engine on a node has its own copy of the weights in the node's memory.
    """
    if subject.device != "cpu" or subject.model is None:
        return
    needed: dict[str, int] = {}
    engines: dict[str, list[str]] = {}
    for pool in subject.pools:
        weights = weight_bytes_of_rank(pool.arguments, subject.model)
        for engine, places in subject.placed(pool).items():
            for node, member in places:
                needed[node.name] = needed.get(node.name, 0) + weights * len(member.ranks)
                engines.setdefault(node.name, []).append(engine)
    for node in subject.nodes:
        there, count = node.shape.memory_bytes, needed.get(node.name, 0)
        if there is not None and there < count:
            what = f"has {_gib(there)} of memory, and the weights of {', '.join(engines[node.name])} need {_gib(count)}"
            yield Problem(f"node {node.name}", what)


@rule("sglang #30233, #1869", "say a shorter context_length, or more ranks")
def _request_fits(subject: Subject) -> Iterator[Problem]:
    """the engine starts, and no request of that length can run: the frontend refuses it, or decode waits for ever"""
    for pool, model, gpu, static in _gpus(subject):
        tokens = pool.count("context_length", 0)
        left = static - weight_bytes_of_rank(pool.arguments, model)
        needed = kv_bytes_of_rank(pool.arguments, model, tokens)
        if 0 <= left < needed:
            what = f"of {tokens} needs {_gib(needed)} of KV a rank, and the weights leave {_gib(left)} of {gpu.name}"
            yield Problem(pool.at("context_length"), what, f"say {int(tokens * left / needed)} at most, or more ranks")


def _gpus(subject: Subject) -> Iterator[tuple[PoolView, ModelFacts, GpuKind, float]]:
    """Each pool with the model, the smallest GPU that it gets, and the bytes of that which weights and KV may use."""
    for pool in subject.pools:
        smallest = subject.smallest_gpu(pool)
        if subject.model is not None and smallest:
            said = pool.get("mem_fraction_static")
            share = float(said) if isinstance(said, int | float) and 0 < said <= 1 else STATIC_SHARE_MOST
            yield pool, subject.model, smallest, smallest.memory_bytes * pool.gpu_share * share


def _static(pool: PoolView, static: float) -> str:
    said = pool.get("mem_fraction_static")
    return f"mem_fraction_static {said} leaves {_gib(static)}" if said else f"{_gib(static)} can be had"


def _gib(count: float) -> str:
    return f"{count / GIB:.1f} GiB"
