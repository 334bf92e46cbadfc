"""Bodies of /v1/messages become chat bodies; what is not taken is refused by name."""

from __future__ import annotations

import time
from typing import Any

import pytest

from disagg.errors import BadRequest
from disagg.frontend.messages_api import chat_body, own_words

USER = {"role": "user", "content": "Hi"}
CACHED: Any = {"cache_control": {"type": "ephemeral"}}
TOOL: Any = {"name": "look", "description": "Looks.", "input_schema": {"properties": {}}, **CACHED}
FUNCTION = {"name": "look", "description": "Looks.", "parameters": {"type": "object", "properties": {}}}
IMAGE: Any = {"type": "image", "source": {"type": "url", "url": "http://x"}}
RESULT = {"type": "tool_result", "tool_use_id": "t", "content": [IMAGE]}


def asked(**more: Any) -> Any:
    return chat_body({"model": "m", "max_tokens": 9, "messages": [USER], **more})


def text(text: str, **more: Any) -> Any:
    return {"type": "text", "text": text, **more}


def messages(*given: Any, **more: Any) -> Any:
    return asked(messages=list(given), **more)["messages"]


def test_a_plain_body() -> None:
    assert asked() == {"model": "m", "max_tokens": 9, "messages": [USER]}


def test_every_field_that_chat_has_too() -> None:
    body = {"stream": True, "temperature": 0.5, "top_p": 0.9, "top_k": 4, "stop_sequences": ["a", "b"]}
    more = {"metadata": {"user_id": "me"}, "tools": [TOOL], "system": [text("One."), text(" "), text("Two.")]}
    labels = {"betas": ["x"], "service_tier": "auto", "context_management": {"edits": []}, "container": None}
    assert asked(**body, **more, **labels, repetition_penalty=1.1) == {
        "model": "m",
        "max_tokens": 9,
        "messages": [{"role": "system", "content": "One.\nTwo."}, USER],
        "stream": True,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 4,
        "stop": ["a", "b"],
        "user": "me",
        "tools": [
            {
                "type": "function",
                "function": {
                    "name": "look",
                    "description": "Looks.",
                    "parameters": {"type": "object", "properties": {}},
                },
            }
        ],
        "tool_choice": "auto",
        "repetition_penalty": 1.1,
    }


def test_a_coding_agents_history() -> None:
    assert messages(
        {"role": "user", "content": [text("a", **CACHED), text("b")]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": ""},
                {"type": "redacted_thinking", "data": "xyz"},
                text("I look."),
                {"type": "tool_use", "id": "t1", "name": "look", "input": {"a": "ü"}},
                {"type": "tool_use", "id": "t2", "name": "wait", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                text("before"),
                {"type": "tool_result", "tool_use_id": "t1", "content": "seen"},
                {"type": "tool_result", "tool_use_id": "t2", "content": [text("no"), text("way")], "is_error": True},
                {"type": "tool_result", "tool_use_id": "t3"},
                text("after"),
            ],
        },
        {"role": "system", "content": "And this."},
        system="You help.",
    ) == [
        {"role": "system", "content": "You help.\nAnd this."},
        {"role": "user", "content": [text("a"), text("b")]},
        {
            "role": "assistant",
            "content": "I look.",
            "reasoning_content": "hm",
            "tool_calls": [
                {"id": "t1", "type": "function", "function": {"name": "look", "arguments": '{"a":"ü"}'}},
                {"id": "t2", "type": "function", "function": {"name": "wait", "arguments": "{}"}},
            ],
        },
        {"role": "user", "content": "before"},
        {"role": "tool", "tool_call_id": "t1", "content": "seen"},
        {"role": "tool", "tool_call_id": "t2", "content": [text("Error: no"), text("way")]},
        {"role": "tool", "tool_call_id": "t3", "content": ""},
        {"role": "user", "content": "after"},
    ]


def test_many_system_messages_cost_what_they_cost() -> None:
    system = [text("One.")]
    begin_s = time.process_time()
    begin, _ = messages(*[{"role": "system", "content": "a"}] * 80_000, USER, system=system)
    assert time.process_time() - begin_s < 4  # a list that is copied for each: 6 to 7
    assert len(begin["content"]) == 4 + 2 * 80_000
    assert system == [text("One.")]


def test_an_answer_goes_on_with_a_last_message_of_the_assistant() -> None:
    begun = {"role": "assistant", "content": "The best answer is ("}
    assert asked(messages=[USER, begun])["continue_final_message"] is True
    call = {"role": "assistant", "content": [text("x"), {"type": "tool_use", "id": "t", "name": "n", "input": {}}]}
    for last in (USER, call, {"role": "assistant", "content": ""}):
        assert "continue_final_message" not in asked(messages=[USER, last])


@pytest.mark.parametrize(
    ("more", "reasoning"),
    [
        ({"thinking": {"type": "enabled", "budget_tokens": 2048}}, {"enabled": True}),
        ({"thinking": {"type": "adaptive"}}, {"enabled": True}),
        ({"thinking": {"type": "disabled"}}, {"enabled": False}),
        ({"output_config": {"effort": "low"}}, {"effort": "low"}),
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "max"}}, {"enabled": True, "effort": "max"}),
    ],
)
def test_thinking_is_chats_switch(more: Any, reasoning: Any) -> None:
    assert asked(**more)["reasoning"] == reasoning


@pytest.mark.parametrize(
    ("choice", "chosen"),
    [
        ({"type": "auto"}, {"tool_choice": "auto"}),
        ({"type": "any"}, {"tool_choice": "required"}),
        ({"type": "none"}, {"tool_choice": "none"}),
        ({"type": "tool", "name": "look"}, {"tool_choice": {"type": "function", "function": {"name": "look"}}}),
        ({"type": "auto", "disable_parallel_tool_use": True}, {"tool_choice": "auto", "parallel_tool_calls": False}),
    ],
)
def test_tool_choices(choice: Any, chosen: Any) -> None:
    chat = asked(tools=[TOOL], tool_choice=choice)
    assert {name: chat[name] for name in ("tool_choice", "parallel_tool_calls") if name in chat} == chosen


@pytest.mark.parametrize("where", ["output_config", "output_format"])
def test_a_schema_of_the_output_is_chats_response_format(where: str) -> None:
    given = {"type": "json_schema", "schema": {"type": "object"}}
    chat = asked(**{where: given if where == "output_format" else {"format": given}})
    assert chat["response_format"]["json_schema"] == {"name": "output", "schema": {"type": "object"}, "strict": True}


def test_tokens_are_counted_of_the_same_chat_without_a_limit() -> None:
    body = {"model": "m", "messages": [USER], "tools": [TOOL]}
    assert chat_body(body, counts=True)["tools"] == asked(tools=[TOOL])["tools"]
    with pytest.raises(BadRequest, match="'max_tokens' is missing"):
        chat_body(body)


def user(*blocks: Any) -> Any:
    return {"messages": [{"role": "user", "content": list(blocks)}]}


@pytest.mark.parametrize(
    ("more", "param", "said"),
    [
        ({"max_tokens": None}, "max_tokens", "missing"),
        ({"max_tokens": 0}, "max_tokens", "at least 1"),
        ({"model": None}, "model", "missing"),
        ({"messages": None}, "messages", "missing"),
        ({"messages": []}, "messages", "empty"),
        ({"messages": [{"role": "user", "content": []}]}, "messages", "says nothing"),
        ({"messages": [3]}, "messages[0]", "an object"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role", "'tool'"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing"),
        (user(IMAGE), "messages[0].content[0]", "the model here takes text alone"),
        (user(text("x"), {"type": "document"}), "messages[0].content[1]", "the model here takes text alone"),
        (
            user({"type": "tool_result", "tool_use_id": "t", "content": [IMAGE]}),
            "messages[0].content[0].content[0]",
            "text",
        ),
        (user({"type": "tool_result"}), "messages[0].content[0].tool_use_id", "missing"),
        (user({"type": "search_result"}), "messages[0].content[0].type", "'search_result'"),
        (user({}), "messages[0].content[0].type", "missing"),
        (user("x"), "messages[0].content[0]", "an object"),
        ({"system": [IMAGE]}, "system[0]", "text alone"),
        ({"system": 3}, "system", "a list"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type", "'web_search_20250305'"),
        ({"tools": [{"name": "x"}]}, "tools[0].input_schema", "an object"),
        ({"tools": [{"input_schema": {}}]}, "tools[0].name", "missing"),
        ({"tool_choice": {"type": "any"}}, "tool_choice", "no 'tools'"),
        ({"tool_choice": {"type": "maybe"}}, "tool_choice.type", "'auto'"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "x"}}, "tool_choice.name", "none of 'tools'"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool"}}, "tool_choice.name", "missing"),
        ({"thinking": {"type": "sometimes"}}, "thinking.type", "'adaptive'"),
        ({"thinking": {"type": "enabled", "budget_tokens": 5}}, "thinking.budget_tokens", "at least 1024"),
        ({"output_config": {"effort": "huge"}}, "output_config.effort", "medium"),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config.format.type", "json_schema"),
        ({"mcp_servers": [{}]}, "mcp_servers", "leave it out"),
        ({"n": 2}, "n", "not a parameter of this endpoint"),
        ({"stop": ["x"]}, "stop", "'stop_sequences'"),
        ({"stop_sequences": [3]}, "stop_sequences[0]", "a string"),
        ({"metadata": {"user_id": 3}}, "metadata.user_id", "a string"),
        ({"stream": "yes"}, "stream", "true or false"),
    ],
)
def test_what_is_not_taken_is_refused_by_name(more: Any, param: str, said: str) -> None:
    with pytest.raises(BadRequest) as caught:
        asked(**more)
    assert (caught.value.param, caught.value.http_status) == (param, 400)
    assert said in caught.value.message
    assert f"'{param}" in caught.value.message


def test_refusals_of_chat_name_what_the_client_sent() -> None:
    told = own_words(BadRequest("stop", "x", "'stop[0]' has 300 characters"))
    assert (told.param, told.message) == ("stop_sequences", "'stop_sequences' has 300 characters")
