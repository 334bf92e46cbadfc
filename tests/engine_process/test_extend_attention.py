"""A chunk's attention without padding: the numbers of plain attention; what it does not know is left to SGLang.

Against SGLang's own function, in each release: tests/config/sglang_behaves.py.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import pytest
import torch

from disagg.host_spec import LIFE_VARIABLE, OFF_VARIABLE
from disagg.sglang.plugins import extend_attention

HEADS, KV_HEADS, SIZE = 6, 2, 16


class Backend:
    """With the parameters of SGLang's, which tests/config/test_plugins_fit_each_release.py holds."""

    def __init__(self) -> None:
        self.asked = 0

    def _run_sdpa_forward_extend(
        self,
        query: Any,
        output: Any,
        k_cache: Any,
        v_cache: Any,
        req_to_token: Any,
        req_pool_indices: Any,
        seq_lens: Any,
        extend_prefix_lens: Any,
        extend_seq_lens: Any,
        encoder_lens: Any = None,
        scaling: Any = None,
        enable_gqa: bool = False,
        causal: bool = False,
        is_cross_attn: bool = False,
        sliding_window_size: int | None = None,
    ) -> str:
        self.asked += 1
        return "SGLang's"


@pytest.fixture
def backend() -> Any:
    class Patched(Backend): ...

    extend_attention.without_padding(Patched)
    return Patched()


def batch(*lengths: tuple[int, int]) -> tuple[Any, ...]:
    """Of (prefix, chunk): random numbers, each sequence in random slots of its own."""
    noise = torch.Generator().manual_seed(3)
    prefixes, chunks = torch.tensor(lengths).T
    totals = prefixes + chunks
    query = torch.randn(int(chunks.sum()), HEADS, SIZE, generator=noise)
    caches = [torch.randn(int(totals.sum()) + 9, KV_HEADS, SIZE, generator=noise) for _ in "kv"]
    slots = torch.randperm(len(caches[0]), generator=noise).split([*totals.tolist(), 9])
    req_to_token = torch.zeros(len(lengths) + 2, int(totals.max()) + 5, dtype=torch.int32)
    rows = torch.arange(len(lengths)).flip(0) + 1
    for row, own in zip(rows, slots, strict=False):
        req_to_token[row, : len(own)] = own
    return query, torch.full_like(query, math.nan), *caches, req_to_token, rows, totals, prefixes, chunks


def plain_attention(
    query: Any,
    _: Any,
    k_cache: Any,
    v_cache: Any,
    req_to_token: Any,
    rows: Any,
    *lengths: Any,
    scaling: float | None = None,
) -> Any:
    """One token after the other."""
    out, begin = torch.empty_like(query), 0
    for row, prefix, chunk in zip(rows, lengths[1].tolist(), lengths[2].tolist(), strict=True):
        for at in range(chunk):
            slots = req_to_token[row, : prefix + at + 1]
            for head in range(HEADS):
                of_head = head * KV_HEADS // HEADS
                weights = (k_cache[slots, of_head] @ query[begin + at, head] * (scaling or SIZE**-0.5)).softmax(0)
                out[begin + at, head] = weights @ v_cache[slots, of_head]
        begin += chunk
    return out


@pytest.mark.parametrize(("queries", "scaling"), [(512, None), (5, 0.7)])
def test_a_chunk_sees_its_prefix_and_itself_up_to_each_token(
    backend: Any, queries: int, scaling: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extend_attention, "QUERIES", queries)
    given = batch((20, 12), (0, 7), (33, 1), (4, 0), (1, 16))
    output = backend._run_sdpa_forward_extend(*given, None, scaling, enable_gqa=True, causal=True)
    torch.testing.assert_close(output, plain_attention(*given, scaling=scaling))
    assert (output is given[1], backend.asked) == (True, 0)


def test_no_more_queries_are_attended_than_the_chunk_has(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real, rows = torch.nn.functional.scaled_dot_product_attention, []

    def counting(query: Any, key: Any, *more: Any, **how: Any) -> Any:
        rows.append((query.shape[2], key.shape[2]))
        return real(query, key, *more, **how)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counting)
    monkeypatch.setattr(extend_attention, "QUERIES", 64)
    backend._run_sdpa_forward_extend(*batch((1000, 100)), enable_gqa=True, causal=True)
    assert rows == [(64, 1064), (36, 1100)]


def test_a_cache_of_another_type_is_read_as_the_queries_are(backend: Any) -> None:
    given = batch((20, 12))
    halved = (*given[:2], given[2].bfloat16(), given[3].bfloat16(), *given[4:])
    output = backend._run_sdpa_forward_extend(*halved, enable_gqa=True, causal=True)
    torch.testing.assert_close(output, plain_attention(*given), atol=0.05, rtol=0.05)


@pytest.mark.parametrize(
    "how",
    [
        {"causal": False},
        {"is_cross_attn": True},
        {"sliding_window_size": 0},
        {"sliding_window_size": 128},
        {"encoder_lens": torch.tensor([3])},
    ],
    ids=str,
)
def test_another_attention_is_sglangs(backend: Any, how: dict[str, Any]) -> None:
    assert (
        backend._run_sdpa_forward_extend(*batch((20, 12)), **{"enable_gqa": True, "causal": True, **how}) == "SGLang's"
    )


def test_what_has_no_prefix_is_sglangs(backend: Any) -> None:
    assert backend._run_sdpa_forward_extend(*batch((0, 12), (0, 3)), enable_gqa=True, causal=True) == "SGLang's"


def test_no_window_is_said_as_sglang_says_it(backend: Any) -> None:
    backend._run_sdpa_forward_extend(*batch((20, 12)), enable_gqa=True, causal=True, sliding_window_size=-1)
    assert backend.asked == 0


@pytest.mark.parametrize("environment", [{}, {LIFE_VARIABLE: "prefill-0#1", OFF_VARIABLE: "extend_attention"}])
def test_it_acts_only_in_engines_of_ours_and_where_sglang_fits(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(LIFE_VARIABLE, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(sys.modules, "sglang.srt.managers.scheduler", object())  # type: ignore[arg-type]
    monkeypatch.setattr(extend_attention, "without_padding", lambda _: pytest.fail("it acts"))
    extend_attention.activate()
