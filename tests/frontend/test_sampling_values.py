"""Every sampling value that passes is a finite number in the engine's own type, whatever it stands beside."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy
import pytest
from scripted import make_model_folder

from disagg.errors import BadRequest, StartError
from disagg.frontend.body import decode_body
from disagg.frontend.parameters import COMPLETION, check_names
from disagg.frontend.request_body import other_fields
from disagg.sampling import FIELDS, FLOAT32_LEAST, NAMES, TOP_K_MAX, SamplingField, defaults_of
from disagg.tokenizer.codec import load_codec

LARGEST_LOGIT = 65504.0  # of a 16-bit float
LONGEST_OUTPUT = 1 << 20  # tokens of a context
TINY = (5e-324, 1e-45, 1e-40, 1e-39)  # float64 holds them; float32 takes them for 0, or for numbers of few digits


def read(**fields: Any) -> dict[str, Any]:
    return sampling_in(json.dumps(fields).encode())


def sampling_in(body: bytes) -> dict[str, Any]:
    sampling: dict[str, Any] = other_fields(check_names(decode_body(body), COMPLETION), {}, is_chat=False)["sampling"]
    return sampling


def ends(field: SamplingField) -> list[Any]:
    """Both ends, and what comes nearest to nothing between them."""
    if field.is_integer:
        return [int(field.least), -1, 0, 1, int(field.most)]
    least = [] if field.above_least else [field.least]
    return [*least, field.most] + [tiny for tiny in TINY if tiny >= field.least]


def by_engine_name(field: SamplingField) -> str:
    return field.engine_name or field.name


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_both_ends_fit_the_engines_type(field: SamplingField) -> None:
    for value in ends(field):
        got = read(**{field.name: value})[by_engine_name(field)]
        kept = numpy.dtype(field.engine_type).type(got)
        if field.is_integer:
            assert int(kept) == got
        else:
            assert numpy.isfinite(kept)
            assert kept == 0 or abs(kept) >= FLOAT32_LEAST, f"{value} is subnormal there"


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_beyond_either_end_it_is_refused_and_the_end_is_named(field: SamplingField) -> None:
    step = 1 if field.is_integer else 1e-3
    beyond = [("below", field.least - step, field.least), ("above", field.most + step, field.most)]
    if field.above_least:
        beyond.append(("below", field.least, field.least))
    for which, value, end in beyond:
        with pytest.raises(BadRequest, match=f"'{field.name}' is .* it must be ") as refused:
            read(**{field.name: int(value) if field.is_integer else value})
        kind = "integer" if field.is_integer else "decimal"
        assert refused.value.code == f"{kind}_{which}_{'min' if which == 'below' else 'max'}_value"
        assert refused.value.message.endswith(f" {int(end) if field.is_integer else format(end, 'g')}")


@pytest.mark.parametrize("value", [*TINY, 1e-34, 1e-6, 0.0099])
def test_a_repetition_penalty_that_would_overflow_is_refused(value: float) -> None:
    with pytest.raises(BadRequest, match=r"'repetition_penalty' is .*; it must be at least 0\.01"):
        read(repetition_penalty=value, temperature=1e-5)


@pytest.mark.parametrize("value", ["1e999", "-1e999", "NaN", "Infinity", "1" * 5000])
@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_what_is_no_number_of_any_size_is_refused(field: SamplingField, value: str) -> None:
    with pytest.raises(BadRequest):
        sampling_in(f'{{"{field.name}": {value}}}'.encode())


def test_no_pair_of_ends_gives_inf_or_nan() -> None:
    """SGLang's steps (see disagg/sampling.py), in float32, on the largest logits there are."""
    of_logits = [field for field in FIELDS if field.name.endswith("penalty") or field.name == "temperature"]
    logits = numpy.array([LARGEST_LOGIT, 1.0, 0.0, -1.0, -LARGEST_LOGIT], dtype=numpy.float32)
    neutral = {"temperature": 1.0, "repetition_penalty": 1.0, "frequency_penalty": 0.0, "presence_penalty": 0.0}
    count = numpy.float32(LONGEST_OUTPUT)
    with numpy.errstate(all="raise", under="ignore"):
        for one, other in itertools.combinations(of_logits, 2):
            for a, b in itertools.product(ends(one), ends(other)):
                got = neutral | read(**{one.name: a, other.name: b})
                values = {name: numpy.float32(value) for name, value in got.items()}
                row = logits - values["frequency_penalty"] * count - values["presence_penalty"]
                penalty = values["repetition_penalty"]
                row = numpy.where(row < 0, row * penalty, row / penalty)
                row = row / (values["temperature"] or numpy.float32(1))  # greedy: SGLang divides by 1
                weights = numpy.exp(row - row.max())
                assert numpy.isfinite(weights).all(), (one.name, a, other.name, b)
                assert weights.sum() >= 1, (one.name, a, other.name, b)


def test_what_is_next_to_nothing_means_what_it_means_there() -> None:
    for tiny in (*TINY, 1e-7):
        assert read(temperature=tiny) == {"temperature": 0.0}, "greedy, as SGLang takes it"
        assert read(top_p=tiny) == {"top_p": 1e-6}, "one token is kept, however many there are"
    assert read(temperature=1e-6) == {"temperature": 1e-6}
    assert read(min_p=1e-40, frequency_penalty=-1e-40, presence_penalty=1e-40) == {
        "min_p": 0.0,
        "frequency_penalty": 0.0,
        "presence_penalty": 0.0,
    }


def test_a_top_k_of_any_size_is_the_whole_vocabulary() -> None:
    assert read(top_k=0) == read(top_k=-1) == {"top_k": -1}
    assert read(top_k=2**31) == read(top_k=2**63 - 1) == {"top_k": TOP_K_MAX}


def test_every_sampling_parameter_has_its_row() -> None:
    of_tokens = {"ignore_eos", "min_tokens", "logit_bias", "stop_token_ids", "stop_regex"}  # test_tokens_are_steered.py
    assert {field.name for field in FIELDS} | of_tokens == NAMES


def test_a_models_defaults_go_through_the_same_table() -> None:
    given = {"temperature": 0.6, "top_k": 0, "top_p": 0.95, "repetition_penalty": 1.1, "do_sample": True, "min_p": None}
    assert defaults_of(given, "x") == {"temperature": 0.6, "top_k": -1, "top_p": 0.95, "repetition_penalty": 1.1}
    assert defaults_of({"top_k": 20.0}, "x") == {"top_k": 20}
    assert defaults_of({"temperature": 0}, "x") == {"temperature": 0.0}


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"repetition_penalty": 0.0}, "'repetition_penalty' is 0.0; it must be at least 0.01"),
        ({"temperature": float("nan")}, "'temperature' is nan, which is no number"),
        ({"temperature": float("inf")}, "'temperature' is inf"),
        ({"temperature": "0.6"}, "'temperature' must be a number, not a string"),
        ({"top_p": True}, "'top_p' must be a number, not a boolean"),
        ({"top_k": 2.5}, "'top_k' must be an integer, not a number"),
        ({"min_p": 3}, "'min_p' is 3; it must be at most 1"),
    ],
)
def test_a_model_that_brings_a_value_no_engine_may_get_does_not_start(
    tmp_path: Path, value: dict[str, Any], says: str
) -> None:
    make_model_folder(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps(value))
    with pytest.raises(StartError) as refused:
        load_codec(tmp_path)
    assert says in str(refused.value)
    assert str(refused.value).startswith(str(tmp_path / "generation_config.json"))
    assert f"mend {next(iter(value))} in that file" in str(refused.value)
