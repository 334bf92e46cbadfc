"""How long a request an engine may be given: what SGLang takes, and what a decode engine would wait for for ever."""

from types import SimpleNamespace

from disagg.sglang.engine import request_tokens_max


def longest(mode: str, kv_tokens: int, max_req_input_len: int, page_size: int = 16) -> int:
    server_args = SimpleNamespace(disaggregation_mode=mode, num_reserved_decode_tokens=512)
    return request_tokens_max(max_req_input_len, server_args, {"kv_tokens": kv_tokens, "page_size": page_size})


def test_a_decode_engine_keeps_its_reserve_free_beside_a_prompt() -> None:
    """Seen with a pool of 1,024 tokens: a prompt of 600 waited in front of all others until the engine was ended."""
    assert longest("decode", 1024, 1018) == 512
    assert longest("decode", 1100, 1094) == 576  # whole pages


def test_elsewhere_and_in_a_large_pool_sglangs_own_limit_holds() -> None:
    assert longest("decode", 262144, 8186) == 8187
    assert longest("prefill", 1024, 1018) == longest("null", 1024, 1018) == 1019
