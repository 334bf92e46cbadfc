"""Bodies of /v1/responses become chat bodies; what is not taken is refused by name."""

from __future__ import annotations

import time
from typing import Any

import pytest
from openai.types.responses import Response

from disagg.errors import BadRequest
from disagg.frontend.parts import Call, ChoiceAnswer
from disagg.frontend.responses_api import (
    ResponseHead,
    ResponsesRequest,
    ResponseStore,
    conversation,
    own_words,
    previous_id,
    read,
)

FUNCTION = {"name": "look", "description": "Looks.", "parameters": {"type": "object"}, "strict": True}
TOOL, CHAT_TOOL = {"type": "function", **FUNCTION}, {"type": "function", "function": FUNCTION}


def asked(**more: Any) -> ResponsesRequest:
    return read({"model": "m", "input": "Hi", **more}, [])


def messages(*items: Any, **more: Any) -> Any:
    return asked(input=list(items), **more).chat["messages"]


def test_a_plain_body() -> None:
    assert asked().chat == {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}


def test_every_field_that_chat_has_too() -> None:
    body = {
        "instructions": "Be brief.",
        "max_output_tokens": 9,
        "metadata": {"a": "b"},
        "parallel_tool_calls": False,
        "reasoning": {"effort": "low"},
        "stream": True,
        "temperature": 0.5,
        "text": {"format": {"type": "json_object"}, "verbosity": "low"},
        "tool_choice": "required",
        "tools": [TOOL],
        "top_logprobs": 3,
        "top_p": 0.9,
        "user": "me",
        "prompt_cache_key": "k",
    }
    extras = {"top_k": 4, "min_p": 0.1, "stop": ["x"], "chat_template_kwargs": {"a": 1}, "repetition_penalty": 1.1}
    assert asked(**body, **extras, service_tier="flex", include=None, max_tool_calls=3).chat == {
        "model": "m",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
        "max_completion_tokens": 9,
        "metadata": {"a": "b"},
        "parallel_tool_calls": False,
        "reasoning": {"effort": "low"},
        "stream": True,
        "temperature": 0.5,
        "response_format": {"type": "json_object"},
        "verbosity": "low",
        "tool_choice": "required",
        "tools": [CHAT_TOOL],
        "logprobs": True,
        "top_logprobs": 3,
        "top_p": 0.9,
        "user": "me",
        "prompt_cache_key": "k",
        **extras,
    }


def test_the_answer_repeats_what_was_asked() -> None:
    body: Any = {"tools": [TOOL], "temperature": 0.5, "reasoning": {"effort": "low", "summary": "auto"}, "store": False}
    request = asked(**body, instructions="Be brief.", include=["reasoning.encrypted_content"], metadata={"a": "b"})
    assert (request.stores, request.summarises, request.seals) == (False, True, True)
    said = ResponseHead("f00d", 1, "m", request.echo).response("in_progress", [])
    response = Response.model_validate(said)
    assert response.reasoning is not None
    assert (response.temperature, response.reasoning.effort, response.instructions) == (0.5, "low", "Be brief.")
    assert said["tools"] == [TOOL]
    assert (said["text"], said["tool_choice"], said["truncation"]) == ({"format": {"type": "text"}}, "auto", "disabled")


def test_one_turn_of_the_assistant_is_one_message() -> None:
    assert messages(
        {"role": "developer", "content": "First."},
        {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
        {"type": "reasoning", "id": "rs", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "I look.", "annotations": []}],
        },
        {"type": "function_call", "call_id": "c1", "name": "look", "arguments": '{"a":1}', "status": "completed"},
        {"type": "function_call", "call_id": "c2", "name": "look", "arguments": '{"a":'},
        {"type": "function_call_output", "call_id": "c1", "output": "seen"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "bad"}]},
        {"type": "message", "role": "system", "content": "Last."},
        instructions="Zeroth.",
    ) == [
        {"role": "system", "content": "Zeroth.\n\nFirst.\n\nLast."},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {
            "role": "assistant",
            "content": "I look.",
            "reasoning_content": "hm",
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"a":1}'}},
                {"id": "c2", "type": "function", "function": {"name": "look", "arguments": "{}"}},  # it broke off
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "seen"},
        {"role": "tool", "tool_call_id": "c2", "content": "bad"},
    ]


def test_a_turn_of_many_calls_costs_what_its_items_cost() -> None:
    call = {"type": "function_call", "call_id": "c", "name": "look", "arguments": "{}"}
    thought = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]}
    begin_s = time.process_time()
    (turn,) = messages(*[call, thought] * 40_000)
    assert time.process_time() - begin_s < 4  # a turn that is copied for each item: 6 to 7
    assert (len(turn["tool_calls"]), len(turn["reasoning_content"])) == (40_000, 3 * 40_000 - 1)


@pytest.mark.parametrize("sealed", [None, "", "gAAAA-of-another-server", "disagg-1.not base64", "disagg-1._w=="])
def test_reasoning_that_nobody_here_can_read_is_left_out(sealed: str | None) -> None:
    item = {"type": "reasoning", "summary": [], "encrypted_content": sealed}
    assert messages(item, {"role": "user", "content": "Hi"}) == [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize(
    ("choice", "tools", "chosen"),
    [
        ("auto", 2, "auto"),
        ("none", 2, "none"),
        ("required", 2, "required"),
        ({"type": "function", "name": "wait"}, 2, {"type": "function", "function": {"name": "wait"}}),
        ({"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "wait"}]}, 1, "required"),
    ],
)
def test_tool_choices(choice: Any, tools: int, chosen: Any) -> None:
    request = asked(tools=[TOOL, {"type": "function", "name": "wait"}], tool_choice=choice)
    assert (len(request.chat["tools"]), request.chat["tool_choice"]) == (tools, chosen)
    assert request.echo["tool_choice"] == choice
    assert request.chat["tools"][-1] == {"type": "function", "function": {"name": "wait"}}


def test_a_schema_of_text_format_is_chats_response_format() -> None:
    text = {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}}
    chat = asked(text=text).chat
    assert chat["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "n", "schema": {"type": "object"}, "strict": True},
    }


USER = {"role": "user", "content": "Hi"}


@pytest.mark.parametrize(
    ("more", "param", "said"),
    [
        ({"input": None}, "input", "missing"),
        ({"input": []}, "input", "empty"),
        ({"input": 3}, "input", "a list"),
        ({"input": [3]}, "input[0]", "an object"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role", "'tool'"),
        ({"input": [{"role": "user"}]}, "input[0].content", "missing"),
        ({"input": [USER, {"type": "web_search_call"}]}, "input[1].type", "'web_search_call'"),
        ({"input": [USER, {"type": "item_reference", "id": "x"}]}, "input[1].type", "'item_reference'"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0]", "text alone"),
        ({"input": [{"role": "user", "content": [{"type": "x"}]}]}, "input[0].content[0].type", "input_text"),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input[0].content[0].text", "missing"),
        ({"input": [{"type": "function_call", "name": "x", "call_id": "y"}]}, "input[0].arguments", "missing"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].call_id", "missing"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "'web_search'"),
        ({"tools": [{"type": "function"}]}, "tools[0].name", "missing"),
        ({"tools": {}}, "tools", "a list"),
        ({"tool_choice": "required"}, "tool_choice", "no 'tools'"),
        ({"tool_choice": "any"}, "tool_choice", "auto"),
        ({"tool_choice": {"type": "file_search"}}, "tool_choice.type", "'file_search'"),
        ({"tool_choice": {"type": "function", "name": "x"}}, "tool_choice.name", "none of 'tools'"),
        ({"background": True}, "background", "leave it out"),
        ({"truncation": "auto"}, "truncation", "only 'disabled'"),
        ({"conversation": "c"}, "conversation", "previous_response_id"),
        ({"prompt": {"id": "p"}}, "prompt", "'input'"),
        ({"include": ["x"]}, "include[0]", "reasoning.encrypted_content"),
        ({"reasoning": {"summary": "long"}}, "reasoning.summary", "concise"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format.type", "json_schema"),
        ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format.schema", "an object"),
        ({"max_output_tokens": 0}, "max_output_tokens", "at least 1"),
        ({"stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation", "leave it out"),
        ({"n": 2}, "n", "not a parameter of this endpoint"),
        ({"messages": []}, "messages", "not a parameter of this endpoint"),
        ({"max_tokens": 2}, "max_tokens", "not a parameter of this endpoint"),
        ({"store": "yes"}, "store", "true or false"),
        ({"instructions": ["x"]}, "instructions", "a string"),
    ],
)
def test_what_is_not_taken_is_refused_by_name(more: Any, param: str, said: str) -> None:
    with pytest.raises(BadRequest) as caught:
        asked(**more)
    assert (caught.value.param, caught.value.http_status) == (param, 400)
    assert said in caught.value.message
    assert f"'{param}" in caught.value.message


@pytest.mark.parametrize("name", ["room", "bootstrap_host", "some_new_field"])
def test_names_that_responses_does_not_have_are_for_the_chats_table(name: str) -> None:
    assert asked(**{name: 1}).chat[name] == 1


@pytest.mark.parametrize(
    ("error", "param", "message"),
    [
        (
            BadRequest("max_completion_tokens", "x", "5 prompt tokens and max_completion_tokens = 9 are more than 8"),
            "max_output_tokens",
            "5 prompt tokens and max_output_tokens = 9 are more than 8",
        ),
        (BadRequest("messages[3].content", "x", "'messages[3].content' is empty"), "input", "'input' is empty"),
        (BadRequest("top_p", "x", "'top_p' is 3; send messages"), "top_p", "'top_p' is 3; send messages"),
        (BadRequest(None, "x", "no"), None, "no"),
    ],
)
def test_refusals_of_chat_name_what_the_client_sent(error: BadRequest, param: str | None, message: str) -> None:
    told = own_words(error)
    assert (told.param, told.message, told.code, told.http_status) == (param, message, "x", 400)


def test_a_conversation_goes_on_without_its_instructions() -> None:
    store = ResponseStore()
    first = asked(instructions="Be brief.")
    answer = ChoiceAnswer(0, "", "hm", [Call("c1", "look", "{}")])
    store.put(b"me", "resp_1", conversation(first.history, answer))
    body = {
        "model": "m",
        "previous_response_id": "resp_1",
        "input": [{"type": "function_call_output", "call_id": "c1", "output": "x"}],
    }
    second = read(body, store.find(b"me", previous_id(body) or "") or [])
    assert second.chat["messages"] == [
        {"role": "user", "content": "Hi"},
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "hm",
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "x"},
    ]
    assert second.echo["previous_response_id"] == "resp_1"
    assert previous_id({}) is None


@pytest.mark.parametrize("arguments", ['{"a": "b', "", "[1]"])
def test_a_call_that_broke_off_is_kept_as_an_object(arguments: str) -> None:
    kept = conversation([USER], ChoiceAnswer(0, calls=[Call("c1", "look", arguments), Call("c2", "look", '{"a":1}')]))
    assert [call["function"]["arguments"] for call in kept[-1]["tool_calls"]] == ["{}", '{"a":1}']


def test_another_keys_conversation_is_as_unknown_as_none() -> None:
    store = ResponseStore()
    store.put(b"me", "resp_1", [USER])
    assert store.find(b"me", "resp_1") == [USER]
    for owner, response_id in ((b"other", "resp_1"), (b"me", "resp_2"), (b"", "resp_1")):
        assert store.find(owner, response_id) is None


def test_the_store_is_bounded_in_entries_and_in_bytes_and_drops_the_longest_unused() -> None:
    store = ResponseStore(entries_max=30, bytes_max=20_000)
    for name in ("a", "b"):
        store.put(b"", name, [USER])
    store.find(b"", "a")
    for name in range(29):
        store.put(b"", f"c{name}", [USER])
    assert len(store) == 30
    assert store.find(b"", "a") == [USER]
    assert store.find(b"", "b") is None
    for name in range(30):
        store.put(b"", f"d{name}", [{"role": "user", "content": "x" * 900}])
        assert store.held_bytes <= 20_000
    assert len(store) == 16
    held = store.held_bytes
    store.put(b"", "d29", [{"role": "user", "content": "x" * 900}])  # again: not counted twice
    assert (len(store), store.held_bytes) == (16, held)


def test_a_conversation_of_more_than_its_share_is_not_kept_and_drops_no_other() -> None:
    store = ResponseStore(bytes_max=10_000)
    store.put(b"", "a", [USER])
    held = store.held_bytes
    store.put(b"", "b", [{"role": "user", "content": "x" * 700}])
    assert (len(store), store.held_bytes) == (1, held)
    assert store.find(b"", "a") == [USER]
