"""Run beside one SGLang release (sglang_touched.py): imports it, patches it as an engine does, looks what comes out.

Out:   one line of JSON: what is not as it should be
"""

from __future__ import annotations

import json
import os
import sys
from array import array
from collections.abc import Iterator
from random import Random
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import torch

from disagg.kv_events.blocks import BlockHasher
from disagg.kv_events.events import Begun, Event
from disagg.kv_events.rank import RankCache
from disagg.sglang.plugins import extend_attention, kv_events, not_a_number, seeds

VOCABULARY, ROWS = 400, 6
SEEDS = torch.tensor([5, seeds.UNSEEDED, 5, 7, seeds.UNSEEDED, -1])
POSITIONS = torch.tensor([3, 3, 3, 3, 9, 9])
TOP_KS = torch.tensor([1 << 30, 40, 5, 1, 1 << 30, 20], dtype=torch.int32)
TOP_PS = torch.tensor([0.9, 1.0, 0.5, 1.0, 1.0, 0.7])
MIN_PS = torch.tensor([0.0, 0.1, 0.0, 0.0, 0.2, 0.05])


def main() -> int:
    from sglang.srt.layers import sampler
    from sglang.srt.sampling.sampling_batch_info import SamplingBatchInfo

    seeds.carry_seeds(SamplingBatchInfo, lambda: "pytorch")
    seeds.sample_with_seeds(sampler)
    complaints = [*_sampling(sampler), *_merging(SamplingBatchInfo), *_aborts(), *_caches(), *_reading()]
    print(json.dumps(complaints))
    return 1 if complaints else 0


def _sampling(sampler: Any) -> Iterator[str]:
    probs = torch.rand(ROWS, VOCABULARY, generator=torch.Generator().manual_seed(1)).softmax(dim=-1)
    seeded = (SEEDS != seeds.UNSEEDED).nonzero().view(-1)

    def filtered(rows: Any, given: Any, need_min_p: bool = True) -> Any:
        sample = sampler.top_k_top_p_min_p_sampling_from_probs_torch
        return sample(probs[rows].clone(), TOP_KS[rows], TOP_PS[rows], MIN_PS[rows], need_min_p, given, POSITIONS[rows])

    def plain(rows: Any, given: Any) -> Any:
        return sampler.sampling_from_probs_torch(probs[rows].clone(), sampling_seed=given, positions=POSITIONS[rows])

    everyone = torch.arange(ROWS)
    for name, sample in (("filtered", filtered), ("plain", plain)):
        torch.manual_seed(10)
        first = sample(everyone, SEEDS)
        torch.manual_seed(11)
        again = sample(everyone, SEEDS)
        if not torch.equal(first[seeded], again[seeded]):
            yield f"{name}: the same seeds gave {first.tolist()}, then {again.tolist()}"
        alone = [int(sample(row.view(1), SEEDS[row].view(1))) for row in seeded]
        if alone != first[seeded].tolist():
            yield f"{name}: alone {alone}, in a batch {first[seeded].tolist()}"
        if sample(everyone, None).shape != first.shape or first.min() < 0 or first.max() >= VOCABULARY:
            yield f"{name}: without seeds {sample(everyone, None).tolist()}, with {first.tolist()}"
        varied = {int(sample(everyone[:1], torch.tensor([seed]))) for seed in range(30)}
        if len(varied) < 10:
            yield f"{name}: thirty seeds gave {len(varied)} tokens"
    for row in seeded.tolist():
        kept = {int(filtered(torch.tensor([row]), torch.tensor([seed]))) for seed in range(200)}
        if not kept <= _support(probs[row], row):
            yield f"row {row}: seeds chose what its filters take out"


def _support(probs: Any, row: int) -> set[int]:
    """Of one row's filters, told in another way than seeds.py does."""
    kept, before = set(), 0.0
    ranked = sorted(range(VOCABULARY), key=lambda token: -float(probs[token]))
    for rank, token in enumerate(ranked):
        weight = float(probs[token])
        if rank < int(TOP_KS[row]) and before <= float(TOP_PS[row]) + 1e-5:
            kept.add(token)
        before += weight
    least = float(probs[ranked[0]]) * float(MIN_PS[row]) - 1e-9
    return {token for token in kept if float(probs[token]) >= least}


def _merging(info_class: Any) -> Iterator[str]:
    """A batch with seeds and one without become one."""
    merged: list[Any] = []

    class Info:
        sampling_seed: Any = None
        device = "cpu"

        def __init__(self, size: int) -> None:
            self.size = size

        def __len__(self) -> int:
            return self.size

        @classmethod
        def from_schedule_batch(cls, batch: Any, _vocabulary: int) -> Any:
            return cls(len(batch.reqs))

        def merge_batch(self, other: Any) -> None:
            merged.append((self.sampling_seed, other.sampling_seed))

    seeds.carry_seeds(Info, lambda: "pytorch")

    def batch(*given: int | None) -> Any:
        reqs = [SimpleNamespace(sampling_params=SimpleNamespace(sampling_seed=seed)) for seed in given]
        return SimpleNamespace(reqs=reqs, spec_algorithm=SimpleNamespace(is_none=lambda: True))

    unseeded, seeded = Info.from_schedule_batch(batch(None, None), 9), Info.from_schedule_batch(batch(4, None), 9)
    if unseeded.sampling_seed is not None or seeded.sampling_seed.tolist() != [4, seeds.UNSEEDED]:
        yield f"seeds of batches are {unseeded.sampling_seed} and {seeded.sampling_seed}"
    unseeded.merge_batch(seeded)
    if merged[0][0] is None or merged[0][0].tolist() != [seeds.UNSEEDED] * 2:
        yield f"merged from {merged}"
    if not hasattr(info_class, "merge_batch"):
        yield "no merge_batch"


def _aborts() -> Iterator[str]:
    from sglang.srt.managers.schedule_batch import FINISH_ABORT

    told = FINISH_ABORT(not_a_number.MESSAGE, 500).to_json()
    if told["type"] != "abort" or told["message"] != not_a_number.MESSAGE:
        yield f"an abort is told as {told}"
    logits = torch.zeros(5, 8)
    logits[1, 3], logits[2, 0], logits[3], logits[4, 7] = float("nan"), float("inf"), float("-inf"), 1e30
    logits[0, 1] = float("-inf")  # a token that a mask takes out
    noted = not_a_number.make_harmless(logits, torch.tensor([1.0, 1.0, 1.0, 1.0, 1e-10]).view(-1, 1))
    if noted.tolist() != [False, True, True, True, True] or not torch.isfinite(logits[1:]).all():
        yield f"noted {noted.tolist()} of {logits.tolist()}"


def _reading() -> Iterator[str]:
    """SGLang's attention of chunks and ours: one, few or all heads on a KV head, sequences with a prefix and without,
    scales; with a window, or not causal, it is SGLang's own in both."""
    from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend as Backend

    class Patched(Backend):  # type: ignore[misc]
        def __init__(self) -> None: ...

    extend_attention.without_padding(Patched)
    random, noise, patched = Random(5), torch.Generator().manual_seed(5), Patched()
    for number in range(40):
        kv_heads, group, size = random.choice((1, 2, 3)), random.choice((1, 3, 8)), random.choice((8, 64))
        prefixes = torch.tensor(
            [random.choice((0, 1, 16, random.randrange(1500))) for _ in range(random.randrange(1, 5))]
        )
        counts = torch.tensor([random.choice((1, 16, random.randrange(1, 700))) for _ in prefixes])
        totals = prefixes + counts
        query = torch.randn(int(counts.sum()), kv_heads * group, size, generator=noise)
        caches = [torch.randn(int(totals.sum()), kv_heads, size, generator=noise) for _ in "kv"]
        req_to_token = torch.zeros(len(totals), int(totals.max()), dtype=torch.int64)
        for row, slots in enumerate(torch.randperm(len(caches[0]), generator=noise).split(totals.tolist())):
            req_to_token[row, : len(slots)] = slots
        how = {"scaling": random.choice((None, 0.3)), "enable_gqa": group > 1, "causal": random.random() < 0.9}
        how["sliding_window_size"] = random.choice((None, None, -1, 100))
        where = (*caches, req_to_token, torch.arange(len(totals)), totals, prefixes, counts)
        read = Backend._run_sdpa_forward_extend(patched, query, torch.empty_like(query), *where, **how)
        ours = patched._run_sdpa_forward_extend(query, torch.empty_like(query), *where, **how)
        if not (difference := float((read - ours).abs().max())) < 1e-5:
            yield f"attention {number}: {how}, {prefixes.tolist()} + {counts.tolist()}: differs by {difference}"


class _Voice:
    """Keeps what a scheduler says."""

    def __init__(self) -> None:
        self.said: list[Event] = [Begun(0)]
        self.say = self.said.append


def _caches() -> Iterator[str]:
    """SGLang's radix trees, through inserts, splits, evictions and a flush, beside the tree of a host that is told."""
    from sglang.srt.mem_cache.cache_init_params import CacheInitParams
    from sglang.srt.mem_cache.radix_cache import RadixCache
    from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache

    try:
        from sglang.srt.mem_cache.unified_cache.component_type import ComponentType
    except ImportError:
        from sglang.srt.mem_cache.unified_radix_cache import ComponentType
    os.environ[kv_events.TREE_CORE_VARIABLE] = "python"
    pool = Mock(device=torch.device("cpu"))
    parts = CacheInitParams(
        disable=False,
        req_to_token_pool=None,
        token_to_kv_pool_allocator=pool,
        page_size=2,
        tree_components=(ComponentType.FULL,),
    )
    for cache in (RadixCache.create_simulated(mock_allocator=pool, page_size=2), UnifiedRadixCache(parts)):
        yield from (f"{type(cache).__name__}: {why}" for why in _cache(cache))


def _cache(cache: Any) -> Iterator[str]:
    from sglang.srt.mem_cache.base_prefix_cache import EvictParams, InsertParams
    from sglang.srt.mem_cache.radix_cache import RadixKey

    voice, random = _Voice(), Random(7)
    hasher = BlockHasher(b"s" * 32, 4)
    host = RankCache(hasher, lambda word: word)
    try:
        tree = kv_events._Tree(cache)
    except AttributeError as error:
        yield f"its prefix cache has no events to stand in the place of: {error}"
        return
    tree.tell(kv_events._Teller(tree, voice))  # type: ignore[arg-type]
    for step in range(300):
        ids = array("q", random.choices((5, 6), k=2 * random.randrange(1, 20)))
        salt = {"cache_salt": random.choice((None, "salt"))} if "cache_salt" in RadixKey.__slots__ else {}
        key = RadixKey(token_ids=ids, extra_key=random.choice((None, "pirate")), **salt)
        cache.insert(InsertParams(key=key, value=torch.arange(len(ids))))
        if step % 3 == 0:
            cache.evict(EvictParams(num_tokens=random.randrange(1, 30)))
        if step == 200:
            cache.reset()
        host.hear(voice.said)
        voice.said.clear()
        if set(host._held._blocks) != (has := _blocks(tree.root, hasher, array("q"))):
            yield f"after step {step} the host has {host.blocks} blocks, and the tree {len(has)}"
            return


def _blocks(node: Any, hasher: BlockHasher, before: array[int]) -> set[int]:
    found: set[int] = set()
    for child in node.children.values():
        ids = before + child.key.token_ids[: len(child.key)]
        namespace = child.key.extra_key or "", getattr(child.key, "cache_salt", None) or ""
        found |= {*hasher.path(ids, *namespace), *_blocks(child, hasher, ids)}
    return found


if __name__ == "__main__":
    sys.exit(main())
