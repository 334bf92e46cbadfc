"""`model.sampling_defaults`: what a request gets that does not say it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models

from disagg.config.find import find_config
from disagg.config.sampling_defaults import SamplingDefaults
from disagg.errors import ConfigError
from disagg.load import load_config, parse_config
from disagg.sampling import FIELDS, defaults_of, sampling_of
from disagg.tokenizer.codec import load_codec
from disagg.tokenizer.overrides import Overrides

CONFIG = """
version: 1
device: simulated
model: {path: smollm2, sampling_defaults: %s}
prefill: {}
decode: {}
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Without a model's weights: a tokenizer of one letter, and what generation_config.json advises."""
    Tokenizer(models.BPE({"a": 0}, [])).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 8, "vocab_size": 8}')
    advised = {"temperature": 0.6, "top_p": 0.9, "do_sample": False, "max_new_tokens": 5, "frequency_penalty": 1}
    (tmp_path / "generation_config.json").write_text(json.dumps(advised))
    return tmp_path


def test_a_deployments_are_stronger_than_the_models_and_a_requests_than_both(model: Path) -> None:
    assert load_codec(model).sampling_defaults == {"temperature": 0.6, "top_p": 0.9}  # as SGLang: these names alone
    said = load_codec(model, Overrides(sampling_defaults={"temperature": 0, "top_k": 0, "repetition_penalty": 1.1}))
    defaults = said.sampling_defaults
    assert defaults == {"temperature": 0.0, "top_p": 0.9, "top_k": -1, "repetition_penalty": 1.1}
    assert sampling_of({}, defaults) == defaults
    assert sampling_of({"temperature": 1}, defaults)["temperature"] == 1.0


@pytest.mark.parametrize("name", ["local-cpu", "local-cpu-2p2d", "local-cpu-aggregated"])
def test_a_request_to_a_local_configuration_is_greedy_unless_it_says_otherwise(name: str) -> None:
    said = load_config(find_config(name)).model.sampling_defaults
    assert said.model_dump(exclude_none=True) == {"temperature": 0}


@pytest.mark.parametrize("field", [field for field in FIELDS if field.name in SamplingDefaults.model_fields])
def test_whatever_the_yaml_takes_is_in_the_range_of_requests(field: Any) -> None:
    schema = SamplingDefaults.model_json_schema()["properties"][field.name]["anyOf"][0]
    least = schema.get("minimum", schema.get("exclusiveMinimum"))
    ends = [least if "minimum" in schema else 0.001, schema["maximum"]]
    assert field.least <= least
    assert schema["maximum"] <= field.most
    for value in ends:
        parsed = parse_config(CONFIG % f"{{{field.name}: {value}}}").model.sampling_defaults
        assert field.name in defaults_of(parsed.model_dump(exclude_none=True), "test")


@pytest.mark.parametrize(
    ("said", "path"),
    [
        ("{temperature: 2.1}", "model.sampling_defaults.temperature"),
        ("{temperature: .nan}", "model.sampling_defaults.temperature"),
        ("{top_p: 0}", "model.sampling_defaults.top_p"),
        ("{top_k: 1.5}", "model.sampling_defaults.top_k"),
        ("{temprature: 0}", "model.sampling_defaults.temprature"),
        ("[0]", "model.sampling_defaults"),
    ],
)
def test_what_no_request_may_say_is_refused_by_its_path(said: str, path: str, tmp_path: Path) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text(CONFIG % said)
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert [problem.path for problem in caught.value.problems] == [path]
