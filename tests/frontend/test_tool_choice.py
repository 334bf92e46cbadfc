"""tools, tool_choice and parallel_tool_calls: what is read of them, and what is refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from disagg.errors import BadRequest
from disagg.frontend.tool_choice import SCHEMA_DEPTH_MAX, TOOLS_MAX, ToolUse, tool_use_of
from tests.frontend.tool_formats import TOOLS, tool

NAMED = {"type": "function", "function": {"name": "get_time"}}


def deep(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(depth):
        schema = {"items": schema}
    return schema


def names(use: ToolUse) -> list[str]:
    return [each["function"]["name"] for each in use.tools]


def test_tools_without_a_choice_are_auto_and_go_into_the_template_as_sglang_gives_them() -> None:
    use = tool_use_of({"tools": TOOLS})
    assert (use.choice, use.named, use.parallel, use.is_active, use.is_required) == ("auto", None, True, True, False)
    assert use.shown is not None
    assert list(use.shown[0]["function"]) == ["description", "name", "parameters", "strict"]


@pytest.mark.parametrize("body", [{}, {"tools": []}, {"tool_choice": "none"}, {"tools": TOOLS, "tool_choice": "none"}])
def test_none_shows_no_tools_and_reads_no_calls(body: dict[str, Any]) -> None:
    use = tool_use_of(body)
    assert (use.shown, use.is_active, use.is_required) == (None, False, False)


def test_a_named_function_alone_is_shown_and_required() -> None:
    use = tool_use_of({"tools": TOOLS, "tool_choice": NAMED, "parallel_tool_calls": False})
    assert (use.named, use.is_required, use.parallel) == ("get_time", True, False)
    assert [each["function"]["name"] for each in use.shown or []] == ["get_time"]


@pytest.mark.parametrize("mode", ["auto", "required"])
def test_allowed_tools_are_the_only_ones_in_both_forms(mode: str) -> None:
    chat = {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [NAMED]}}
    responses = {"type": "allowed_tools", "mode": mode, "tools": [{"type": "function", "name": "get_time"}]}
    for said in (chat, responses):
        use = tool_use_of({"tools": TOOLS, "tool_choice": said})
        assert (names(use), use.choice, use.is_required) == (["get_time"], mode, mode == "required")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"function_call": {"name": "f"}}, "function_call"),
        ({"tools": {}}, "tools"),
        ({"tools": [1]}, "tools[0]"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [tool("")]}, "tools[0].function.name"),
        ({"tools": [tool("a b")]}, "tools[0].function.name"),
        ({"tools": [tool("a" * 65)]}, "tools[0].function.name"),
        ({"tools": [tool("a\n")]}, "tools[0].function.name"),
        ({"tools": [tool("f"), tool("f")]}, "tools[1].function.name"),
        ({"tools": [tool(f"f{index}") for index in range(TOOLS_MAX + 1)]}, "tools"),
        ({"tools": [{"function": {"name": "f", "parameters": []}}]}, "tools[0].function.parameters"),
        (
            {"tools": [{"function": {"name": "f", "parameters": deep(SCHEMA_DEPTH_MAX)}}]},
            "tools[0].function.parameters",
        ),
        ({"tools": [{"function": {"name": "f", "parameters": deep(5000)}}]}, "tools[0].function.parameters"),
        ({"tools": [{"function": {"name": "f", "parameters": {"a": "x" * 70_000}}}]}, "tools[0].function.parameters"),
        ({"tools": [{"function": {"name": "f", "strict": "yes"}}]}, "tools[0].function.strict"),
        ({"tools": [{"function": {"name": "f", "description": 1}}]}, "tools[0].function.description"),
        ({"tools": [{"function": {"name": "f", "description": "x" * 20_000}}]}, "tools[0].function.description"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": NAMED}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": "any"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": 1}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "custom"}}, "tool_choice.type"),
        ({"tools": TOOLS, "tool_choice": {"type": "function"}}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "allowed_tools", "allowed_tools": 1}}, "tool_choice.allowed_tools"),
        ({"tools": TOOLS, "tool_choice": {"type": "allowed_tools", "tools": []}}, "tool_choice.tools"),
        ({"tools": TOOLS, "tool_choice": {"type": "allowed_tools", "tools": [1]}}, "tool_choice.tools[0]"),
        ({"tools": TOOLS, "tool_choice": {"type": "allowed_tools", "mode": [], "tools": []}}, "tool_choice.mode"),
        ({"tools": TOOLS, "parallel_tool_calls": 1}, "parallel_tool_calls"),
    ],
)
def test_what_it_is_not_is_refused_by_name(body: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as refused:
        tool_use_of(body)
    assert refused.value.param == param
    assert f"'{param}'" in refused.value.message or "'tools'" in refused.value.message


def test_the_most_that_is_allowed_is_allowed() -> None:
    schema = deep(SCHEMA_DEPTH_MAX - 1)
    many = [{"function": {"name": f"f{index}", "parameters": schema}} for index in range(TOOLS_MAX)]
    assert len(tool_use_of({"tools": many}).tools) == TOOLS_MAX
