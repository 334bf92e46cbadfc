"""Messages of every kind become what templates know; what is none gets a 400 that names its place."""

from __future__ import annotations

from typing import Any

import pytest

from disagg.errors import BadRequest
from disagg.frontend.messages import messages_of

CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": [1, 2.5, null]}'}}
CALLED = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": {"a": [1, 2.5, None]}}}


def calls(**function: Any) -> dict[str, Any]:
    return {"role": "assistant", "tool_calls": [{"function": {"name": "f", **function}}]}


def one(message: Any) -> dict[str, Any]:
    (checked,) = messages_of([message], 10)
    return checked


@pytest.mark.parametrize(
    ("sent", "checked"),
    [
        (
            {"role": "assistant", "content": None, "tool_calls": [CALL | {"index": 0}], "refusal": None, "audio": None},
            {"role": "assistant", "content": "", "tool_calls": [CALLED]},
        ),
        (
            {
                "role": "assistant",
                "content": "I look.",
                "tool_calls": [CALL],
                "reasoning_content": "hm",
                "parsed": None,
            },
            {"role": "assistant", "content": "I look.", "reasoning_content": "hm", "tool_calls": [CALLED]},
        ),
        ({"role": "assistant", "reasoning": "hm"}, {"role": "assistant", "content": "", "reasoning_content": "hm"}),
        ({"role": "assistant", "content": "", "annotations": []}, {"role": "assistant", "content": ""}),
        ({"role": "assistant", "refusal": "No."}, {"role": "assistant", "content": "No."}),
        (
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
            {"role": "assistant", "content": [{"type": "text", "text": "No."}]},
        ),
        (
            {"role": "tool", "content": "5", "tool_call_id": "call_1", "name": "f"},
            {"role": "tool", "content": "5", "tool_call_id": "call_1", "name": "f"},
        ),
        ({"role": "tool", "tool_call_id": "a"}, {"role": "tool", "content": "", "tool_call_id": "a"}),
        (
            {"role": "tool", "content": [{"type": "text", "text": "5"}]},
            {"role": "tool", "content": [{"type": "text", "text": "5"}]},
        ),
        ({"role": "user", "content": "a", "tool_calls": [], "refusal": ""}, {"role": "user", "content": "a"}),
        (calls(), calls(arguments={}) | {"content": ""}),
        (calls(arguments=""), calls(arguments={}) | {"content": ""}),
        (calls(arguments={"b": 1}), calls(arguments={"b": 1}) | {"content": ""}),
    ],
)
def test_what_passes(sent: dict[str, Any], checked: dict[str, Any]) -> None:
    for call in checked.get("tool_calls", ()):
        call.setdefault("type", "function")
    assert one(sent) == checked


@pytest.mark.parametrize(
    ("sent", "param", "code"),
    [
        ({"role": "assistant"}, "content", "missing_required_parameter"),
        ({"role": "assistant", "content": None, "tool_calls": []}, "content", "missing_required_parameter"),
        ({"role": "assistant", "content": "a", "refusal": "b"}, "refusal", "invalid_value"),
        ({"role": "assistant", "content": "", "audio": {"id": "a"}}, "audio", "unsupported_parameter"),
        ({"role": "assistant", "content": "", "annotations": [{}]}, "annotations", "unsupported_parameter"),
        ({"role": "assistant", "function_call": {"name": "f"}}, "function_call", "unsupported_parameter"),
        ({"role": "assistant", "content": "", "reasoning_content": 5}, "reasoning_content", "invalid_type"),
        ({"role": "assistant", "tool_calls": {"a": 1}}, "tool_calls", "invalid_type"),
        ({"role": "assistant", "tool_calls": [CALL] * 11}, "tool_calls", "context_length_exceeded"),
        ({"role": "assistant", "tool_calls": [1]}, "tool_calls[0]", "invalid_type"),
        ({"role": "assistant", "tool_calls": [{"x": 1}]}, "tool_calls[0].x", "unknown_parameter"),
        (
            {"role": "assistant", "tool_calls": [CALL | {"type": "custom"}]},
            "tool_calls[0].type",
            "unsupported_parameter",
        ),
        ({"role": "assistant", "tool_calls": [CALL | {"id": 5}]}, "tool_calls[0].id", "invalid_type"),
        (calls(name=""), "tool_calls[0].function.name", "invalid_value"),
        (calls(name=None), "tool_calls[0].function.name", "invalid_type"),
        (calls(x=1), "tool_calls[0].function.x", "unknown_parameter"),
        (calls(arguments="{"), "tool_calls[0].function.arguments", "invalid_value"),
        (calls(arguments="[" * 5000), "tool_calls[0].function.arguments", "invalid_value"),
        (calls(arguments="[1]"), "tool_calls[0].function.arguments", "invalid_type"),
        (calls(arguments=5), "tool_calls[0].function.arguments", "invalid_type"),
        ({"role": "tool", "content": "5", "tool_call_id": 1}, "tool_call_id", "invalid_type"),
        ({"role": "tool", "content": "5", "tool_calls": [CALL]}, "tool_calls", "invalid_value"),
        ({"role": "user", "content": "5", "tool_call_id": "a"}, "tool_call_id", "invalid_value"),
        ({"role": "function", "content": "5", "name": "f"}, "role", "unsupported_parameter"),
        ({"role": "system", "content": None}, "content", "missing_required_parameter"),
        (
            {"role": "user", "content": [{"type": "refusal", "refusal": "No."}]},
            "content[0].type",
            "unsupported_parameter",
        ),
        ({"role": "user", "content": [{"type": 5}]}, "content[0].type", "missing_required_parameter"),
        ({"role": "user", "content": "a", "name": 5}, "name", "invalid_type"),
    ],
)
def test_what_does_not_is_named(sent: dict[str, Any], param: str, code: str) -> None:
    with pytest.raises(BadRequest) as refused:
        one(sent)
    assert (refused.value.param, refused.value.code) == (f"messages[0].{param}", code)


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "video_url", "file", "input_image"])
def test_media_are_refused_by_what_the_model_takes(kind: str) -> None:
    with pytest.raises(BadRequest, match=f"is '{kind}'; this model takes text only"):
        one({"role": "user", "content": [{"type": kind, kind: {"url": "data:"}}]})
