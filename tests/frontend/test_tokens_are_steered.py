"""min_tokens, logit_bias, stop_token_ids, stop_regex: bounded before an engine sees them, and shown as SGLang does."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import pytest
from scripted import CONTEXT, ScriptedBackend, ask, exchange, says, serving

from disagg.errors import BadRequest
from disagg.frontend.body import decode_body
from disagg.sampling import sampling_of
from disagg.stop_patterns import TAIL_TOKENS, complaint_about
from disagg.tokenizer.codec import Codec

VOCABULARY = 259


def read(**fields: Any) -> dict[str, Any]:
    return sampling_of(decode_body(json.dumps(fields).encode()), {}, VOCABULARY)


def test_engines_get_them_in_sglangs_words() -> None:
    assert read(min_tokens=5) == {"min_new_tokens": 5}
    assert read(logit_bias={"5": -100, "258": 1.5, "7": 0}) == {"logit_bias": {"5": -100.0, "258": 1.5}}
    assert read(stop_token_ids=[9, 2.0, 9, 119690]) == {"stop_token_ids": [2, 9]}  # the last is another model's
    assert read(stop_regex="and|or") == {"stop_regex": ["and|or"]}
    assert read(stop_regex=[r"[.!?]\s*$", ""]) == {"stop_regex": [r"[.!?]\s*$"]}
    assert read(min_tokens=0, logit_bias={}, stop_token_ids=[], stop_regex=[]) == {}


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"min_tokens": -1}, "min_tokens", "integer_below_min_value"),
        ({"min_tokens": 2**31}, "min_tokens", "integer_above_max_value"),
        ({"min_tokens": False}, "min_tokens", "invalid_type"),
        ({"logit_bias": []}, "logit_bias", "invalid_type"),
        ({"logit_bias": {"x": 1}}, "logit_bias.x", "invalid_token_id"),
        ({"logit_bias": {"-1": 1}}, "logit_bias.-1", "invalid_token_id"),
        ({"logit_bias": {"259": 1}}, "logit_bias.259", "invalid_token_id"),
        ({"logit_bias": {"٣": 1}}, "logit_bias.٣", "invalid_token_id"),
        ({"logit_bias": {"9" * 5000: 1}}, f"logit_bias.{'9' * 20}", "invalid_token_id"),
        ({"logit_bias": {"5": 100.1}}, "logit_bias.5", "decimal_above_max_value"),
        ({"logit_bias": {"5": -101}}, "logit_bias.5", "decimal_below_min_value"),
        ({"logit_bias": {"5": "1"}}, "logit_bias.5", "invalid_type"),
        ({"logit_bias": {str(each): 1 for each in range(1025)}}, "logit_bias", "array_above_max_length"),
        ({"stop_token_ids": 5}, "stop_token_ids", "invalid_type"),
        ({"stop_token_ids": ["5"]}, "stop_token_ids[0]", "invalid_type"),
        ({"stop_token_ids": [1, 1 << 31]}, "stop_token_ids[1]", "invalid_token_id"),
        ({"stop_token_ids": [-1]}, "stop_token_ids[0]", "invalid_token_id"),
        ({"stop_token_ids": [1] * 257}, "stop_token_ids", "array_above_max_length"),
        ({"stop_regex": 5}, "stop_regex", "invalid_type"),
        ({"stop_regex": ["a"] * 17}, "stop_regex", "array_above_max_length"),
        ({"stop_regex": "("}, "stop_regex", "invalid_value"),
        ({"stop_regex": "(a+)+b"}, "stop_regex", "invalid_value"),
    ],
)
def test_beyond_the_limits_they_are_refused_by_name(fields: dict[str, Any], param: str, code: str) -> None:
    with pytest.raises(BadRequest) as refused:
        read(**fields)
    assert (refused.value.param, refused.value.code) == (param, code)


@pytest.mark.parametrize(
    "pattern", ["and|or", r"[.!?]\s*$", r"\d{1,20}", "(foo|bar){1,5}", "^END$", "a.{0,40}b.{0,20}c", "x*", "(?i:stop)"]
)
def test_patterns_that_are_soon_gone_through_pass(pattern: str) -> None:
    assert complaint_about(pattern) == ""


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("(a+)+b", "more than 1024 ways"),
        ("(a|a)*b", "more than 1024 ways"),
        ("a*a*b", "more than 1024 ways"),
        ("(a|aa){1,30}b", "more than 1024 ways"),
        (r"(a)\1", "a reference to a group"),
        ("(?=a)b", "assert"),
        ("[", "no regular expression"),
        ("a" * 257, "longer than 256 bytes"),
        ("a{99999999999999999999}", "no regular expression"),
    ],
)
def test_patterns_that_would_hold_up_a_scheduler_are_refused(pattern: str, says: str) -> None:
    assert says in complaint_about(pattern)


def test_the_slowest_that_passes_is_searched_for_within_a_step() -> None:
    """On the longest text that is searched: TAIL_TOKENS tokens of eight letters each."""
    text = "a" * (TAIL_TOKENS * 8)
    for pattern in ("a*b", "a{0,30}a{0,30}b", "(a|b){0,9}c", "(a|a|a|a){5}b"):
        assert complaint_about(pattern) == ""
        started_s = time.perf_counter()
        assert re.search(pattern, text) is None
        assert time.perf_counter() - started_s < 2.0, pattern  # some 50 ms on an idle machine


async def test_the_fewest_tokens_are_at_most_what_the_answer_may_have(codec: Codec) -> None:
    backend = ScriptedBackend(says("x"))
    async with serving(backend, codec) as frontend:
        assert (await exchange(frontend.port, ask(min_tokens=5, max_tokens=5))).status == 200
        for fields in ({"min_tokens": 6, "max_tokens": 5}, {"min_tokens": CONTEXT}):
            answer = await exchange(frontend.port, ask(**fields))
            assert (answer.status, answer.json["error"]["param"]) == (400, "min_tokens")


async def test_stop_tokens_end_an_answer_whose_last_word_is_lost(codec: Codec) -> None:
    backend = ScriptedBackend(says("x"))
    async with serving(backend, codec) as frontend:
        await exchange(frontend.port, ask(stop_token_ids=[5]))
        await exchange(frontend.port, ask(stop_token_ids=[5], ignore_eos=True))
    first, second = backend.requests
    assert (5 in first.end_ids, second.end_ids) == (True, frozenset())
    assert second.sampling["stop_token_ids"] == [5], "SGLang heeds it no more than ours does"
    assert first.text.push([ord("b") - ord("!"), 5]) == "b", "the stop token leaves no text"
    assert second.text.push([ord("b") - ord("!"), 5]) == "b&"


async def test_what_ends_the_text_is_shown_where_asked(codec: Codec) -> None:
    backend = ScriptedBackend(says("x"))
    shown = []
    async with serving(backend, codec) as frontend:
        for more in ({}, {"no_stop_trim": True}, {"include_stop_str_in_output": True}):
            await exchange(frontend.port, ask(stop="&'", stop_token_ids=[8], **more))
            shown.append(backend.requests[-1].text.push([4, 5, 6, 7]))
    assert shown == ["%", "%&'", "%&'"]


async def test_special_tokens_are_shown_where_asked_but_for_the_one_that_ends_the_answer(codec: Codec) -> None:
    backend = ScriptedBackend(says("x"))
    shown = []
    async with serving(backend, codec) as frontend:
        for more in ({}, {"skip_special_tokens": False}, {"skip_special_tokens": False, "no_stop_trim": True}):
            await exchange(frontend.port, ask(stop_token_ids=[258], **more))
            shown.append(backend.requests[-1].text.push([257, 4, 258]))
        answer = await exchange(frontend.port, ask(skip_special_tokens="no"))
        assert (answer.status, answer.json["error"]["param"]) == (400, "skip_special_tokens")
        assert (await exchange(frontend.port, ask(spaces_between_special_tokens=False))).status == 200
        answer = await exchange(frontend.port, ask(spaces_between_special_tokens=0))
        assert (answer.status, answer.json["error"]["param"]) == (400, "spaces_between_special_tokens")
    assert shown == ["%", "<|im_start|>%", "<|im_start|>%<|im_end|>"]


async def test_engines_without_a_tokenizer_are_told_of(codec: Codec) -> None:
    ignored = dict.fromkeys(("grammar", "min_tokens", "stop_regex"), "install another release")
    async with serving(ScriptedBackend(says("x"), ignored=ignored), codec) as frontend:
        for fields in ({"min_tokens": 5}, {"stop_regex": "a"}, {"min_tokens": 5, "temperature": 0}):
            answer = await exchange(frontend.port, ask(**fields))
            assert (answer.status, answer.json["error"]["code"]) == (400, "ignored_parameter")
        assert (await exchange(frontend.port, ask(stop_token_ids=[5], logit_bias={"5": 1}))).status == 200
