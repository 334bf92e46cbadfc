"""Bodies of /generate become completion bodies; a completion's own names are not taken."""

from __future__ import annotations

import json
from typing import Any

import pytest

from disagg.adapters import Served
from disagg.errors import BadRequest
from disagg.frontend.native_api import NativeSaying, completion_body
from disagg.frontend.parts import TokenLogprobs
from disagg.frontend.reading import read
from disagg.frontend.responses import encode
from disagg.tokenizer.codec import Codec
from tests.frontend.scripted import MODEL


def test_every_field_that_generate_has() -> None:
    sampling = {"max_new_tokens": 4, "temperature": 0.5, "n": 2, "sampling_seed": None}
    more: Any = {"stream": True, "model": "m", "return_logprob": True, "top_logprobs_num": 3, "log_metrics": True}
    assert completion_body({"text": "Hi", "sampling_params": sampling, **more, "max_tokens": None}) == {
        "prompt": "Hi",
        "max_tokens": 4,
        "add_special_tokens": True,
        "temperature": 0.5,
        "n": 2,
        "stream": True,
        "model": "m",
        "logprobs": 3,
    }


@pytest.mark.parametrize("ids", [[], [[]], [7, -1], [[7], [10**9]], [7] * 513])
def test_a_refusal_names_the_field_that_was_sent(codec: Codec, ids: list[Any]) -> None:
    with pytest.raises(BadRequest) as caught:
        read(json.dumps({"input_ids": ids}).encode(), "generate", Served(MODEL), codec)
    assert caught.value.param == "input_ids"
    assert "'text" not in caught.value.message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", 4),
        ("prompt", "Hi"),
        ("add_special_tokens", False),
        ("best_of", 1),
        ("echo", True),
        ("logprobs", 1),
        ("n", 2),
        ("temperature", 0),
        ("return_token_ids", True),
        ("stream_options", {"include_usage": True}),
    ],
)
def test_a_completions_own_names_are_refused(name: str, value: Any) -> None:
    with pytest.raises(BadRequest) as caught:
        completion_body({"text": "Hi", name: value})
    assert (caught.value.param, caught.value.code) == (name, "unknown_parameter")


@pytest.mark.parametrize("name", ["rid", "bootstrap_host", "user", "some_new_field"])
def test_other_names_are_for_the_table(name: str) -> None:
    assert completion_body({"text": "Hi", name: "x"})[name] == "x"


def test_logprobs_are_said_as_sglangs_clients_read_them() -> None:
    """What is asked of the prompt and was not told is an empty list beside the answer's."""
    saying = NativeSaying(["1"], [[5, 6]], 0.0)
    plain, topped = TokenLogprobs(7, -0.5), TokenLogprobs(7, -0.5, [(7, -0.5), (8, -1.0)])

    def said(*given: list[TokenLogprobs]) -> Any:
        return json.loads(encode(saying.logprobs(*given)))

    assert said([]) == {}
    assert said([plain]) == {
        "input_token_logprobs": [],
        "output_token_logprobs": [[-0.5, 7, None]],
        "output_token_logprobs_length": 1,
    }
    with_top = said([topped])
    assert (with_top["input_top_logprobs"], with_top["output_top_logprobs"]) == (
        [],
        [[[-0.5, 7, None], [-1.0, 8, None]]],
    )
    assert said([plain], [TokenLogprobs(5, None)])["input_token_logprobs"] == [[None, 5, None]]
