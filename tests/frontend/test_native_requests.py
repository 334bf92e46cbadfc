"""Bodies of /generate become completion bodies; a completion's own names are not taken."""

from __future__ import annotations

from typing import Any

import pytest

from disagg.errors import BadRequest
from disagg.frontend.native_api import completion_body


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
