"""What the parsers of a deployment make of a request: constraints for its engines, plans for its answer, refusals."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest

from disagg.errors import BadRequest
from disagg.frontend import parsing
from disagg.frontend.parsing import NO_PARSERS, Asking, Parsing, Talk
from disagg.frontend.reasoning_tokens import ReasoningTokens
from disagg.frontend.tool_choice import ToolUse, tool_use_of
from disagg.reasoning_end import end_ids_of
from disagg.sglang.parsers.setup import ParserSetup, set_up
from disagg.sglang.parsers.thinking import Thinking
from tests.frontend.reading import NAMES, meant, needs_sglang, read
from tests.frontend.tool_formats import CALLS, TOOLS, tool

pytestmark = needs_sglang
BY_NAME = pytest.mark.parametrize("name", NAMES.tools)
STRICT = [tool("get_weather", strict=True, city="string")]
QWEN_TEMPLATE = (
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>{% endif %}<tool_call>"
)


def use(choice: Any = None, tools: list[dict[str, Any]] = TOOLS, **more: Any) -> ToolUse:
    return tool_use_of({"tools": tools, "tool_choice": choice, **more})


def ask(name: str | None, asked: ToolUse, reasoning: str | None = None, **talk: Any) -> Asking:
    return Parsing(set_up(name, reasoning, None, {})).ask(asked, Talk(**talk))


@BY_NAME
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_time"}}])
def test_a_required_call_is_constrained_as_its_format_can_be(name: str, choice: Any) -> None:
    asking = ask(name, use(choice))
    assert set(asking.sampling) in ({"structural_tag"}, {"json_schema"}, {"ebnf", "ebnf_full_assistant"}, set())
    if "json_schema" in asking.sampling:
        called = json.loads(asking.sampling["json_schema"])["items"]
        assert "get_time" in json.dumps(called)
        text = json.dumps([{"name": each, "parameters": arguments} for each, arguments in CALLS])
        assert meant(read(asking.plan, text)) == CALLS
    elif "structural_tag" in asking.sampling:
        assert json.loads(asking.sampling["structural_tag"])["type"] == "structural_tag"
    assert asking.keeps_special_tokens


@BY_NAME
def test_auto_is_free_unless_a_tool_is_strict(name: str) -> None:
    free, strict = ask(name, use()).sampling, ask(name, use(tools=STRICT)).sampling
    assert set(free) <= {"structural_tag", "ebnf", "ebnf_full_assistant"}
    if name in ("qwen25", "hermes", "llama3", "mistral"):
        assert (free, set(strict)) == ({}, {"structural_tag"})
        assert "city" in strict["structural_tag"]


def test_one_call_at_most_is_constrained_where_calls_are_an_array() -> None:
    one = json.loads(ask("pythonic", use("required", parallel_tool_calls=False)).sampling["json_schema"])
    many = json.loads(ask("pythonic", use("required")).sampling["json_schema"])
    assert (one["maxItems"], "maxItems" in many) == (1, False)


def test_without_a_parser_only_a_required_call_can_be_read() -> None:
    with pytest.raises(BadRequest, match=r"model\.tool_call_parser"):
        ask(None, use())
    asking = ask(None, use("required"))
    assert set(asking.sampling) == {"json_schema"}
    assert meant(read(asking.plan, ['[{"name": "get_time", "parameters": {}}]'])) == [("get_time", {})]


def test_a_required_or_strict_call_beside_another_constraint_is_refused() -> None:
    for asked in (use("required"), use(tools=STRICT)):
        with pytest.raises(BadRequest, match="response_format"):
            ask("qwen25", asked, is_constrained=True)
    assert ask("qwen25", use(), is_constrained=True).sampling == {}


@pytest.mark.parametrize(
    ("asked", "talk", "waits"),
    [
        (ToolUse(), {"is_constrained": True}, True),
        (use("required"), {}, True),
        (use({"type": "function", "function": {"name": "get_time"}}), {}, True),
        (ToolUse(), {}, False),  # nothing waits
        (use(), {}, False),
        (ToolUse(), {"is_constrained": True, "variables": {"enable_thinking": False}}, False),  # it does not think
        (use("required"), {"variables": {"enable_thinking": False}}, False),
    ],
)
def test_a_constraint_waits_for_the_end_of_reasoning(asked: ToolUse, talk: dict[str, Any], waits: bool) -> None:
    thinks = Parsing(set_up("hermes", "qwen3", QWEN_TEMPLATE, {}), [5, 6])
    sampling = thinks.ask(asked, Talk(**talk)).sampling
    assert end_ids_of(sampling.get("custom_params")) == ([5, 6] if waits else [])


def test_one_that_describes_the_reasoning_does_not() -> None:
    asking = Parsing(set_up("glm47", "glm45", None, {}), [5]).ask(use("required"), Talk())
    assert asking.require_reasoning
    assert set(asking.sampling) == {"ebnf", "ebnf_full_assistant"}


@pytest.mark.parametrize("is_stream", [False, True])
def test_the_reasoning_before_a_constrained_answer_is_told_apart(is_stream: bool) -> None:
    asking = ask(None, ToolUse(), "qwen3", is_constrained=True)
    said = read(asking.plan, ["<think>it is", " 1</think>", '{"a": "<think>"}'], is_stream=is_stream)
    assert (said.reasoning, said.text) == ("it is 1", '{"a": "<think>"}')
    off = ask(None, ToolUse(), "qwen3", is_constrained=True, variables={"enable_thinking": False})
    assert off.plan.reasoning is None  # its text is what the constraint made, to the letter


def test_two_schemas_of_one_name_are_the_clients_mistake() -> None:
    tools = [
        {"function": {"name": name, "parameters": {"type": "object", "$defs": {"a": {"type": kind}}}}}
        for name, kind in (("f", "string"), ("g", "integer"))
    ]
    with pytest.raises(BadRequest, match="multiple schemas"):
        ask("pythonic", use("required", tools))


def test_no_tools_and_no_parsers_ask_for_nothing() -> None:
    asking = ask(None, ToolUse())
    assert (asking.sampling, asking.require_reasoning, asking.keeps_special_tokens) == ({}, False, False)
    assert (asking.plan.tools, asking.plan.reasoning) == (None, None)


def test_reasoning_that_is_not_to_be_told_apart_is_left_in_the_text() -> None:
    asking = ask(None, ToolUse(), "qwen3", separate_reasoning=False)
    assert read(asking.plan, ["<think>a</think>b"]).text == "<think>a</think>b"
    assert asking.require_reasoning


def test_the_tokens_of_reasoning_are_counted_with_their_mark() -> None:
    count = ReasoningTokens([7, 8])
    for ids in ([1, 7], [7], [8, 9], [7, 8]):
        count.push(ids)
    assert count.count == 4
    endless, none = ReasoningTokens([7]), ReasoningTokens([])
    for each in (endless, none):
        each.push([1, 2, 3])
    assert (endless.count, none.count) == (3, 0)


def test_auto_goes_by_the_models_template() -> None:
    setup = set_up("auto", "auto", QWEN_TEMPLATE, {})
    assert (setup.tools, setup.reasoning) == ("qwen", "qwen3")
    assert (setup.thinking.toggle, setup.thinking.is_default) == ("enable_thinking", True)
    assert set_up("auto", None, "<｜DSML｜tool_calls>", {}).tools == "deepseekv4"
    assert set_up("auto", "auto", "nothing", {}).tools is None
    assert set_up("auto", None, "x", {"<|tool_calls_section_begin|>": True}).tools == "kimi_k2"
    assert set_up(None, None, None, {}) == ParserSetup()


@pytest.mark.parametrize(
    ("architecture", "tools", "reasoning"),
    [
        ("KimiK3ForConditionalGeneration", "kimi_k3", "kimi_k3"),
        ("DeepseekV4ForCausalLM", "deepseekv4", "deepseek-v4"),
        ("DeepseekV3ForCausalLM", "deepseekv32", "deepseek-v3"),
        ("LlamaForCausalLM", None, None),
    ],
)
@pytest.mark.parametrize("template", [None, "nothing"])
def test_auto_goes_by_the_architecture_where_the_template_tells_nothing(
    architecture: str, tools: str | None, reasoning: str | None, template: str | None
) -> None:
    setup = set_up("auto", "auto", template, {}, architecture)
    assert (setup.tools, setup.reasoning) == (tools, reasoning)
    assert set_up("auto", "auto", QWEN_TEMPLATE, {}, architecture).tools == "qwen"


def test_an_answer_of_kimi_k3_ends_with_its_calls() -> None:
    asking = ask("kimi_k3", use())
    assert asking.stop == ("<|close|>tools<|sep|>",)
    assert ask("kimi_k3", ToolUse()).stop == ask("hermes", use()).stop == ()


async def test_the_first_request_that_needs_sglangs_parsers_has_them_imported_in_a_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    imported = []
    monkeypatch.setattr(parsing, "are_loaded", lambda: bool(imported))
    monkeypatch.setattr(parsing, "sglang_parsers", lambda: imported.append(threading.current_thread()))
    for asked in (ToolUse(), use("required"), use("required")):
        await NO_PARSERS.load(asked)
    assert len(imported) == 1
    assert imported[0] is not threading.main_thread()


def test_a_name_that_sglang_does_not_have_is_told_with_those_it_has() -> None:
    with pytest.raises(ValueError, match="qwen25"):
        set_up("qwen2.5", None, None, {})


@pytest.mark.parametrize(
    ("thinking", "variables", "effort", "is_on"),
    [
        (Thinking(), {}, "high", False),
        (Thinking("qwen3", "enable_thinking", True, is_template_known=True), {}, None, True),
        (Thinking("qwen3", "enable_thinking", True, is_template_known=True), {"enable_thinking": False}, None, False),
        (Thinking("deepseek-v3", "thinking", False, is_template_known=True), {}, None, False),
        (Thinking("deepseek-v3", "thinking", False, is_template_known=True), {"thinking": True}, None, True),
        (Thinking("gpt-oss", special="always", is_template_known=True), {}, "none", True),
        (Thinking("mistral", special="mistral", is_template_known=True), {}, None, False),
        (Thinking("mistral", usual="mistral"), {}, "high", True),
        (Thinking("deepseek-r1", usual="always"), {}, None, True),
        (Thinking("glm45", usual="enable_thinking"), {}, None, True),
        (Thinking("glm45", usual="enable_thinking"), {"enable_thinking": False}, None, False),
        (Thinking("gemma4", usual="explicit_enable_thinking"), {}, None, False),
        (Thinking("gemma4", usual="explicit_enable_thinking"), {"enable_thinking": True}, None, True),
        (Thinking("minimax-m3", usual="always"), {}, None, False),
        (Thinking("minimax-m3", usual="always"), {"thinking_mode": "enabled"}, None, True),
        (Thinking("hunyuan", usual="always"), {}, None, False),
        (Thinking("hunyuan", special="hunyuan_effort", is_template_known=True), {}, None, True),
        (Thinking("hunyuan", special="hunyuan_effort", is_template_known=True), {}, "no_think", False),
    ],
)
def test_whether_a_model_thinks(thinking: Thinking, variables: dict[str, Any], effort: str | None, is_on: bool) -> None:
    assert thinking.is_on(variables, effort) is is_on
