"""Requests that are refused, by SGLang's own server, by one engine of ours, and by prefill + decode."""

from __future__ import annotations

from typing import Any

from asked_three_ways import ABSENT, PROMPT, SAID, Row, rows


def refused(path: str, common: dict[str, Any], cases: dict[str, dict[str, Any]]) -> list[Row]:
    return rows(path, common, cases, "refused")


REFUSED = [
    *refused(
        "/v1/chat/completions",
        {"model": "smollm2", "messages": SAID},
        {
            "no messages": {"messages": []},
            "a wrong type": {"max_tokens": "many"},
            "negative max_tokens": {"max_tokens": -1},
            "a role nobody knows": {"messages": [{"role": "narrator", "content": "x"}]},
            "a bad schema": {
                "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}
            },
            "too long": {"messages": [{"role": "user", "content": "word " * 9000}]},
            "another model": {"model": "other", "max_tokens": 2, "temperature": 0},
            "temperature": {"temperature": -1},
            "top_p": {"top_p": 2},
        },
    ),
    *refused(
        "/v1/completions",
        {"model": "smollm2", "prompt": PROMPT},
        {
            "no prompt": {"prompt": ABSENT},
            "an empty prompt": {"prompt": ""},
            "a bad regex": {"regex": "("},
            "echo and too long": {"prompt": "word " * 9000},
        },
    ),
    *refused(
        "/generate",
        {"text": PROMPT},
        {
            "neither": {"text": ABSENT},
            "a bad temperature": {"sampling_params": {"temperature": -1}},
            "an unknown parameter": {"sampling_params": {"no_such": 1}},
            "too long": {"text": "word " * 9000},
        },
    ),
    *refused("/tokenize", {}, {"neither": {}}),
    *refused("/detokenize", {}, {"neither": {}, "a wrong type": {"tokens": "x"}}),
    *refused(
        "/v1/messages",
        {"model": "smollm2", "messages": SAID, "max_tokens": 4},
        {
            "no max_tokens": {"max_tokens": ABSENT},
            "no messages": {"messages": []},
            "negative": {"max_tokens": -1},
        },
    ),
    *refused(
        "/v1/responses",
        {"model": "smollm2"},
        {"no input": {}, "previous unknown": {"input": "x", "previous_response_id": "resp_none"}},
    ),
]
