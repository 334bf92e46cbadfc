"""Asks SGLang's own code what it makes of arguments, pairs and files: a program of its own, as SGLang takes 13 s to
import and needs the stand-ins of disagg/engine/cpu.

In:    stdin: JSON, a list of [question, its arguments]; questions are the functions below
Out:   stdout, last line: JSON, the list of answers: what SGLang raised, or null. No engine is started, no model read
"""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace
from typing import Any


def server_args(arguments: dict[str, Any]) -> None:
    """As `sglang.Engine(**arguments)` begins."""
    from sglang.srt.arg_groups.validation_hook import check_server_args
    from sglang.srt.server_args import ServerArgs

    asked = ServerArgs(**arguments)
    asked.resolve_once()
    check_server_args(asked)


def first_request(prefill: dict[str, Any], decode: dict[str, Any]) -> None:
    """Each rank of a decode engine learns of its prefill engine: before the first request to that one."""
    import requests
    from sglang.srt.disaggregation.common.conn import CommonKVManager

    told = {**prefill, "follow_bootstrap_room": True}
    answer = SimpleNamespace(status_code=200, json=lambda: told)
    real, requests.get = requests.get, lambda *_, **__: answer  # type: ignore[assignment]
    try:
        for rank in range(decode["attn_tp_size"]):
            manager = SimpleNamespace(
                prefill_info_table={},
                kv_args=SimpleNamespace(page_size=decode["page_size"], engine_rank=rank),
                kv_cache_dtype_str=decode["kv_cache_dtype"],
                is_mla_backend=decode["is_mla"],
                is_hybrid_mla_backend=False,
                enable_all_cp_ranks_for_transfer=False,
                attn_cp_rank=0,
                pp_rank=0,
                **{name: decode[name] for name in ("attn_tp_size", "attn_cp_size", "pp_size", "dcp_size")},
            )
            manager._resolve_rank_mapping = lambda info, manager=manager: CommonKVManager._resolve_rank_mapping(
                manager, info
            )
            assert CommonKVManager.try_ensure_parallel_info(manager, "prefill:1")
            (targets,) = [info.target_tp_ranks for info in manager.prefill_info_table.values()]
            if max(targets) >= prefill["attn_tp_size"]:
                raise LookupError(f"rank {rank} asks for prefill rank {max(targets)} of {prefill['attn_tp_size']}")
    finally:
        requests.get = real


def backend_pages(argument: str, backend: str, page_size: int, expected: int) -> None:
    from sglang.srt.arg_groups.overrides import _mla_backend_page_constraints

    names = ("attention_backend", "prefill_attention_backend", "decode_attention_backend")
    view = SimpleNamespace(page_size=page_size, speculative_draft_attention_backend=None, **dict.fromkeys(names))
    setattr(view, argument, backend)
    made = _mla_backend_page_constraints(view).get("page_size", page_size)
    assert made == expected, f"{made} instead of {expected}"


def hybrid_state(prefill_tp: int, decode_tp: int) -> None:
    """The end of a transfer of a model with sliding-window layers."""
    from sglang.srt.disaggregation.base.conn import StateType
    from sglang.srt.disaggregation.nixl.conn import NixlKVManager

    kv_args = SimpleNamespace(state_types=[StateType.SWA], state_data_ptrs=[[0]], state_item_lens=[[1]])
    kv_args.state_layer_ids = []
    manager = SimpleNamespace(kv_args=kv_args, is_mla_backend=False, attn_tp_size=prefill_tp)
    NixlKVManager.maybe_send_extra(manager, "decode", [[0]], [[0]], [[0]], 0, "", decode_tp)


def attention_layer(heads: int, kv_heads: int, tp_size: int) -> None:
    from sglang.srt.layers.linear import QKVParallelLinear

    QKVParallelLinear(heads * 8, 8, heads, kv_heads, bias=False, tp_rank=0, tp_size=tp_size)


def weight_files(folder: str) -> None:
    from pathlib import Path

    from sglang.srt.model_loader.weight_utils import filter_duplicate_safetensors_files

    there = [str(path) for path in Path(folder).glob("*.safetensors")]
    filter_duplicate_safetensors_files(there, folder, "model.safetensors.index.json")


def _answer(question: str, arguments: list[Any]) -> str | None:
    try:
        globals()[question](*arguments)
    except Exception as error:  # whatever SGLang raises is the answer
        return f"{type(error).__name__}: {error}"
    return None


if __name__ == "__main__":
    answers = [_answer(question, arguments) for question, arguments in json.load(sys.stdin)]
    print(f"\n{json.dumps(answers)}")
