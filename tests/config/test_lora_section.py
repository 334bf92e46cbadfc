"""`model.lora`: what the YAML may say of adapters, what is read from their folders, what engines get of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from disagg.errors import ConfigError
from disagg.load import load_config, parse_config, shipped_text
from disagg.models.adapters import read_adapter
from disagg.planning.plan import resolve

CONFIG = """
version: 1
device: {device}
model: {{path: smollm2, lora: {lora}}}
prefill: {{engine: {{page_size: 16}}}}
decode: {{engine: {{page_size: 16, lora_backend: triton}}}}
"""
BY_TYPE = ("must be",)  # what the types refuse
SIZES = "max_lora_rank: 8, target_modules: [q_proj]"


def config(lora: str, device: str = "cpu") -> str:
    return CONFIG.format(lora=lora, device=device)


def adapter(folder: Path, config: Any = None, weights: str = "adapter_model.safetensors", **more: Any) -> Path:
    folder.mkdir(parents=True)
    said = {"peft_type": "LORA", "r": 8, "target_modules": ["q_proj", "v_proj"], **more} if config is None else config
    (folder / "adapter_config.json").write_text(said if isinstance(said, str) else json.dumps(said))
    (folder / weights).write_bytes(b"weights")
    return folder


def test_both_roles_get_the_same_and_what_is_not_said_is_read_from_the_adapters(tmp_path: Path) -> None:
    adapter(tmp_path / "sql")
    adapter(tmp_path / "below" / "fr", r=32, target_modules=["model.layers.0.mlp.down_proj", "q_proj", "v_proj"])
    (tmp_path / "own.yaml").write_text(config("{adapters: {sql: sql, fr: {path: ./below/fr, pinned: true}}}"))
    deployment = load_config(tmp_path / "own.yaml")
    lora = deployment.model.lora
    assert lora is not None
    said = {name: (each.path, each.pinned) for name, each in lora.adapters.items()}
    assert said == {"sql": (f"{tmp_path}/sql", False), "fr": (f"{tmp_path}/below/fr", True)}
    prefill, decode = (engine.engine for engine in resolve(deployment, "cpu").engines)
    wanted = {"enable_lora": True, "max_lora_rank": 32, "lora_target_modules": ["down_proj", "q_proj", "v_proj"]}
    wanted |= {"page_size": 16}
    assert prefill == wanted | {"lora_backend": "torch_native"}
    assert decode == wanted | {"lora_backend": "triton"}, "what changes no token is the pool's own"
    assert "lora_backend" not in resolve(deployment, "cuda").engines[0].engine
    text, sets = shipped_text(tmp_path / "own.yaml")
    assert parse_config(text, sets).model.lora == lora, "to another machine it goes with what was read here"


def test_a_path_counts_from_the_file_that_says_it(tmp_path: Path) -> None:
    adapter(tmp_path / "below" / "sql")
    (tmp_path / "below" / "own.yaml").write_text(config("{adapters: {sql: sql}}"))
    (tmp_path / "above.yaml").write_text("version: 1\nextends: below/own.yaml\n")
    lora = load_config(tmp_path / "above.yaml").model.lora
    assert lora is not None
    assert lora.adapters["sql"].path == f"{tmp_path}/below/sql"


def test_what_is_said_goes_to_every_engine() -> None:
    text = config(f"{{{SIZES}, max_loras_per_batch: 3, max_loaded_loras: 9}}") + "embedding: {}\n"
    by_role = {engine.role.value: engine.engine for engine in resolve(parse_config(text), "cpu").engines}
    of_all = {"enable_lora": True, "max_lora_rank": 8, "lora_target_modules": ["q_proj"]}
    of_all |= {"max_loras_per_batch": 3, "max_loaded_loras": 9}
    assert set(by_role) == {"prefill", "decode", "embedding"}
    assert all(of_all.items() <= engine.items() for engine in by_role.values())
    assert resolve(parse_config(config(f"{{{SIZES}}}", "simulated").replace(", lora_backend: triton", "")), "simulated")


@pytest.mark.parametrize(
    ("lora", "path", "what"),
    [
        ("{}", "model.lora.max_lora_rank", "is not said"),
        ("{max_lora_rank: 8}", "model.lora.target_modules", "is not said"),
        ("{adapters: {sql: gone}}", "model.lora.adapters.sql", "gone is not there"),
        ("{adapters: {sql: .}}", "model.lora.adapters.sql", "holds no adapter_config.json"),
        (f"{{{SIZES}, adapters: {{sql: .}}}}", "model.lora.adapters.sql", "holds no adapter_config.json"),
        ("{adapters: {sql: whole}, max_lora_rank: 4}", "model.lora.adapters.sql", "has rank 8"),
        ("{adapters: {sql: whole}, target_modules: [q_proj]}", "model.lora.adapters.sql", "changes v_proj"),
        ("{adapters: {sql: words}}", "model.lora.target_modules", "is not said"),
        (f"{{{SIZES}, adapters: {{'a:b': /a}}}}", "model.lora", "holds ':'"),
        (f"{{{SIZES}, adapters: {{smollm2: /a}}}}", "model.lora", "is the name of the model"),
        (f"{{{SIZES}, adapters: {{'a b': /a}}}}", "model.lora", "must begin with a letter or digit"),
        (f"{{{SIZES}, adapters: {{sql: 5}}}}", "model.lora.adapters.sql", "must be"),
        (f"{{{SIZES}, adapters: {{sql: {{path: /a, r: 4}}}}}}", "model.lora.adapters.sql.r", "is not a known key"),
        (f"{{{SIZES}, adapters: [a]}}", "model.lora.adapters", "must be"),
        (f"{{{SIZES}, max_loaded_loras: 4}}", "model.lora.max_loaded_loras", "below max_loras_per_batch"),
        ("{max_lora_rank: x, target_modules: q_proj}", "model.lora.max_lora_rank", "must be"),
        ("5", "model.lora", "must be"),
    ],
)
def test_what_is_refused(tmp_path: Path, lora: str, path: str, what: str) -> None:
    adapter(tmp_path / "whole")
    adapter(tmp_path / "words", target_modules="all-linear")
    (tmp_path / "own.yaml").write_text(config(lora))
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "own.yaml")
    told = [problem for problem in caught.value.problems if problem.path == path and what in problem.what]
    assert told, caught.value.problems
    assert all(problem.would_do for problem in told if what not in BY_TYPE), told


@pytest.mark.parametrize("argument", ["enable_lora: true", "lora_paths: [a=/a]", "max-lora-rank: 8"])
def test_pools_say_nothing_of_it(argument: str) -> None:
    with pytest.raises(ConfigError, match=r"say model\.lora"):
        parse_config(config("null").replace("lora_backend: triton", argument))


@pytest.mark.parametrize(
    ("said", "absent"),
    [
        ({"config": "{"}, "no JSON"),
        ({"config": "[]"}, "no LoRA adapter"),
        ({"config": {"peft_type": "PROMPT_TUNING"}}, "no LoRA adapter"),
        ({"config": {"target_modules": ["q_proj"]}}, "no rank"),
        ({"r": True}, "no rank"),
        ({"use_dora": True}, "DoRA"),
        ({"target_modules": ["k_proj", "o_proj"]}, "changes k_proj and not q_proj"),
        ({"use_rslora": True, "bias": "all"}, "has use_rslora, bias in its adapter_config.json"),
        ({"rank_pattern": {"q_proj": 4}}, "has rank_pattern"),
        ({"alpha_pattern": {"q_proj": 4}}, "has alpha_pattern"),
        ({"modules_to_save": ["lm_head"]}, "has modules_to_save"),
        ({"use_rslora": False, "rank_pattern": {}, "modules_to_save": None, "bias": "none"}, ""),
        ({"weights": "readme.md"}, "no weights"),
        ({}, ""),
    ],
    ids=str,
)
def test_what_no_engine_could_load(tmp_path: Path, said: dict[str, Any], absent: str) -> None:
    found = read_adapter(str(adapter(tmp_path / "a", **said)))
    assert absent in found.absent
    assert bool(found.absent) is bool(absent)
    assert absent or (found.rank, found.modules) == (8, ("q_proj", "v_proj"))


def test_digests_differ_where_files_do(tmp_path: Path) -> None:
    same = [read_adapter(str(adapter(tmp_path / name))).digest for name in ("a", "b")]
    (tmp_path / "b" / "adapter_model.safetensors").write_bytes(b"longer weights")
    assert same[0] == same[1] != read_adapter(str(tmp_path / "b")).digest
    assert read_adapter(str(adapter(tmp_path / "c", r=4))).digest != same[0]
