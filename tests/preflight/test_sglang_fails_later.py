"""With the preflight off, the same mistakes go through to SGLang, whose own code then stops, minutes later as a rule.

SGLang's argument resolution, its first handshake of a pair, its layers and its loader are asked, without an engine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from disagg.cpu_profile.paths import standin_environment
from disagg.planning.kv_pages import PAGES_OF_BACKENDS, real_page_size
from disagg.planning.plan import Plan
from disagg.preflight.api import subject_of
from disagg.roles import Role
from disagg.sglang.arguments import Ports
from tests.preflight.mistakes import BASES, Mistake, planted

pytestmark = pytest.mark.engine
ROOT = Path(__file__).parents[2]
LIMIT_S = 240
DENSE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_attention_heads": 64,
    "num_hidden_layers": 2,
    "num_key_value_heads": 8,
    "vocab_size": 256,
    "max_position_embeddings": 131072,
}
EXPERTS = DENSE | {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 64,
    "decoder_sparse_step": 1,
    "norm_topk_prob": True,
}
# The mistake -> the role whose engine stops while it reads its arguments, and a part of what it says.
AT_START = {
    "dp_size that does not divide tp_size": ("decode", "AssertionError"),
    "pipeline stages with speculative decoding": ("prefill", "Pipeline parallelism is not compatible"),
    "load balancing of experts on one rank": ("decode", "AssertionError"),
    "each rank picks its own replica": ("decode", "different physical replica per rank"),
    "two-batch overlap with nothing to overlap": ("prefill", "enabling two batch overlap"),
    "flashinfer all-to-all without DP attention": ("decode", "only supported with dp_size == tp_size"),
    "dense tp that SGLang does not take": ("decode", "moe_dense_tp_size only supports"),
    "a chunk that is no multiple of the page": ("prefill", "divisible by page_size"),
    "a chunk that DP attention divides below the page": ("prefill", "divisible by page_size"),
    "hierarchical cache without a radix cache": ("prefill", "mutually exclusive"),
    "hierarchical cache on decode as it is": ("decode", "mutually exclusive"),
    "decode's radix cache with speculative decoding": ("decode", "incompatible with speculative decoding"),
    "offloading decode's KV to nowhere": ("decode", "hicache-storage-backend is provided"),
    "multiplexing in a split deployment": ("prefill", "PD-Multiplexing"),
    "a context longer than the model's": ("prefill", "greater than the derived context_length"),
}
# The mistake -> a part of what a decode engine raises when its first request comes.
AT_FIRST_REQUEST = {
    "page size differs": "Page size mismatch",
    "page size of one token on one side": "Page size mismatch",
    "an attention backend that sets its own page size": "Page size mismatch",
    "KV in fp8 on decode only": "KV cache dtype mismatch",
    "six attention ranks on decode and four on prefill": "asks for prefill rank 4 of 4",
    "more pipeline stages on decode": "Decode pp size (2) should be equal to prefill pp size (1) or 1",
    "context parallelism on decode": "Decode cp size (2) should be equal to 1",
    "decode context parallelism without MLA": "requires an MLA or hybrid-MLA KV pool",
}
LAYERS = {
    "heads that tp_size does not divide": "64 is not divisible by 6",
    "KV heads that tp_size does not divide": "6 is not divisible by 4",
}
PLANTED = {mistake.name: mistake for mistake in planted()}
Answers = dict[str, str | None]


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    """Of SGLang, all in one process: by mistake, and by base and role for what has no mistake."""
    folder = tmp_path_factory.mktemp("models")
    patch = pytest.MonkeyPatch()
    patch.setattr("disagg.preflight.api.RULES", ())
    try:
        questions = dict(_questions(folder))
    finally:
        patch.undo()
    program = [sys.executable, "-W", "ignore", str(ROOT / "tests/preflight/upstream.py")]
    environment = standin_environment(os.environ | {"SGLANG_USE_CPU_ENGINE": "1", "HF_HUB_OFFLINE": "1"})
    asked = json.dumps(list(questions.values()))
    done = subprocess.run(program, input=asked, capture_output=True, text=True, timeout=LIMIT_S, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    return dict(zip(questions, json.loads(done.stdout.splitlines()[-1]), strict=True))


def _questions(folder: Path) -> Any:
    for name in ("llama", "deepseek", "gpt_oss"):
        model = folder / name
        model.mkdir()
        (model / "config.json").write_text(json.dumps(DENSE if name == "llama" else EXPERTS))
    for base in ("llama", "deepseek", "gpt_oss"):
        good = Mistake("", "", base, "", "", "")
        for role in ("prefill", "decode"):
            yield f"{base} {role}", ("server_args", [_arguments(good.plan(), role, folder / base)])
        yield f"{base} pair", ("first_request", _pair(good))
    for name, (role, _) in AT_START.items():
        mistake = PLANTED[name]
        yield name, ("server_args", [_arguments(mistake.plan(), role, folder / mistake.base)])
    for name in AT_FIRST_REQUEST:
        yield name, ("first_request", _pair(PLANTED[name]))
    for name in LAYERS:
        model, pool = PLANTED[name].model(), _subject(PLANTED[name]).pools[0]
        yield name, ("attention_layer", [model.heads, model.kv_heads, pool.attention_tp])
    prefill, decode = _subject(PLANTED["gpt-oss with another tp on each side"]).pools
    yield "gpt-oss with another tp on each side", ("hybrid_state", [prefill.attention_tp, decode.attention_tp])
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model-00001-of-00002.safetensors").touch()
    yield "a shard that was never fetched", ("weight_files", [str(folder)])
    for backend, (sizes, instead, arguments) in PAGES_OF_BACKENDS.items():
        for argument in arguments:
            for said in (1, 16, 32, 64, 128):
                expected = said if said in sizes else instead
                yield f"{argument}={backend} {said}", ("backend_pages", [argument, backend, said, expected])


def _arguments(plan: Plan, role: str, model: Path) -> dict[str, Any]:
    """What the engine would be given, on a CPU: SGLang's rules between arguments are the same there."""
    (engine,) = plan.of_role(Role(role))
    return engine.arguments(device="cpu", model_path=str(model), host="127.0.0.1", ports=Ports.from_first(1))


def _subject(mistake: Mistake) -> Any:
    return subject_of(mistake.plan(), None, mistake.model())


def _pair(mistake: Mistake) -> list[dict[str, Any]]:
    subject = _subject(mistake)
    return [
        {
            "attn_tp_size": pool.attention_tp,
            "attn_cp_size": pool.cp,
            "dp_size": pool.dp,
            "pp_size": pool.pp,
            "page_size": real_page_size(pool.arguments)[0],
            "kv_cache_dtype": pool.get("kv_cache_dtype") or "auto",
        }
        | ({"is_mla": subject.model.is_mla, "dcp_size": pool.count("dcp_size")} if pool.role == "decode" else {})
        for pool in subject.pools
    ]


@pytest.mark.parametrize("base", ["llama", "deepseek", "gpt_oss"])
def test_sglang_takes_what_the_mistakes_are_planted_in(base: str, answers: Answers) -> None:
    assert base in BASES
    assert [answers[f"{base} {what}"] for what in ("prefill", "decode", "pair")] == [None] * 3


@pytest.mark.parametrize("name", AT_START)
def test_the_engine_stops_while_it_reads_its_arguments(name: str, answers: Answers) -> None:
    assert AT_START[name][1] in (answers[name] or "")


@pytest.mark.parametrize("name", AT_FIRST_REQUEST)
def test_the_decode_engine_dies_on_its_first_request(name: str, answers: Answers) -> None:
    assert AT_FIRST_REQUEST[name] in (answers[name] or "")


@pytest.mark.parametrize("name", LAYERS)
def test_the_first_layer_cannot_be_built(name: str, answers: Answers) -> None:
    assert LAYERS[name] in (answers[name] or "")


def test_the_transfer_of_a_hybrid_model_raises_in_its_worker(answers: Answers) -> None:
    assert "does NOT support PD different TP sizes" in (answers["gpt-oss with another tp on each side"] or "")


def test_the_loader_misses_a_shard(answers: Answers) -> None:
    assert "missing" in (answers["a shard that was never fetched"] or "")


@pytest.mark.parametrize("backend", PAGES_OF_BACKENDS)
def test_attention_backends_make_the_pages_that_the_rule_says(backend: str, answers: Answers) -> None:
    asked = {name: answer for name, answer in answers.items() if f"={backend} " in name}
    assert len(asked) >= 10
    assert not any(asked.values()), asked
