"""What is asked of SGLang's own server, of one engine of ours, and of prefill + decode: endpoint by endpoint.

Each row: the path, what its body says, and below which name its differences are told.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["Roger", "Serena"]}, "wins": {"type": "integer", "minimum": 10, "maximum": 99}},
    "required": ["name", "wins"],
    "additionalProperties": False,
}
SCHEMA_TEXT = json.dumps(SCHEMA)
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
STRICT = TOOL | {"function": TOOL["function"] | {"strict": True}}
NAMED = {"type": "function", "function": {"name": "weather"}}
CALL = r'<tool_call>\n\{"name": "weather", "arguments": \{"city": "(Paris|Rome)"\}\}\n</tool_call>'
SAID: list[dict[str, Any]] = [{"role": "user", "content": "Say hi"}]
ALL_ROLES: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "My name"}, {"type": "text", "text": " is Bob."}]},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Who am I?"},
]
AFTER_A_CALL: list[dict[str, Any]] = [
    {"role": "user", "content": "How is Paris?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
        ],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
]
PROMPT = "The capital of France is"
PROMPT_IDS = [504, 3575, 282, 4649, 314]


@dataclass(frozen=True)
class Row:
    path: str
    name: str
    body: dict[str, Any] | None  # None: it is a GET
    kind: str = ""

    @property
    def id(self) -> str:
        return f"{self.kind} {self.path} {self.name}".strip()


def rows(path: str, common: dict[str, Any], cases: dict[str, dict[str, Any]], kind: str = "") -> list[Row]:
    """A row for each case: what it says beside, or instead of, `common`."""
    said = {name: common | more for name, more in cases.items()}
    return [
        Row(path, name, {key: value for key, value in body.items() if value is not ABSENT}, kind)
        for name, body in said.items()
    ]


ABSENT: Any = object()
STREAM: dict[str, Any] = {"stream": True}
SEEDED = {"temperature": 0.7, "seed": 5}
JSON = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": SCHEMA}}

CHAT = rows(
    "/v1/chat/completions",
    {"model": "smollm2", "messages": SAID, "temperature": 0, "max_tokens": 8},
    {
        "plain": {},
        "max_completion_tokens": {"max_tokens": ABSENT, "max_completion_tokens": 5},
        "roles": {"messages": ALL_ROLES},
        "a tool's answer": {"messages": AFTER_A_CALL, "tools": [TOOL]},
        "ends by itself": {"messages": [{"role": "user", "content": "Answer with one word: yes"}], "max_tokens": 64},
        "stop": {"stop": [" How", "!"]},
        "stop, kept": {"stop": "!", "no_stop_trim": True, "max_tokens": 20},
        "stop_token_ids": {"stop_token_ids": [17]},
        "stop_regex": {"stop_regex": r"[.!?]", "max_tokens": 20},
        "min_tokens": {"min_tokens": 6, "stop_token_ids": [17], "max_tokens": 12},
        "ignore_eos": {"ignore_eos": True, "max_tokens": 12},
        "logit_bias": {"logit_bias": {"17": 100}, "max_tokens": 3},
        "penalties": {"frequency_penalty": 1.5, "presence_penalty": 0.5, "repetition_penalty": 1.2, "max_tokens": 16},
        "top_k of one": {"temperature": 0.9, "top_k": 1},
        "n": {"n": 2},
        "logprobs": {"logprobs": True},
        "top_logprobs": {"logprobs": True, "top_logprobs": 3},
        "logprobs, streamed": {"logprobs": True, "top_logprobs": 2, **STREAM},
        "response_format": {"response_format": JSON, "max_tokens": 40},
        "response_format, streamed": {"response_format": JSON, "max_tokens": 40, **STREAM},
        "json_object": {"response_format": {"type": "json_object"}, "max_tokens": 30},
        "regex": {"regex": "(red|green) (blue|yellow)"},
        "ebnf": {"ebnf": 'root ::= "Hello " name\nname ::= "Bob" | "Eve"'},
        "tools, none called": {"tools": [TOOL], "tool_choice": "auto"},
        "tools, choice none": {"tools": [TOOL], "tool_choice": "none"},
        "tools, one called": {"tools": [TOOL], "regex": CALL, "max_tokens": 60},
        "tools, one called, streamed": {"tools": [TOOL], "regex": CALL, "max_tokens": 60, **STREAM},
        "tools, required": {"tools": [STRICT], "tool_choice": "required", "max_tokens": 60},
        "tools, named": {"tools": [STRICT], "tool_choice": NAMED, "max_tokens": 60},
        "tools, named, streamed": {"tools": [STRICT], "tool_choice": NAMED, "max_tokens": 60, **STREAM},
        "tools, not parallel": {
            "tools": [STRICT],
            "tool_choice": "required",
            "parallel_tool_calls": False,
            "max_tokens": 60,
        },
        "stream": STREAM,
        "include_usage": {**STREAM, "stream_options": {"include_usage": True}},
        "continuous_usage_stats": {
            **STREAM,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        },
        "reasoning fields": {
            "separate_reasoning": True,
            "stream_reasoning": True,
            "chat_template_kwargs": {"enable_thinking": False},
        },
        "continue_final_message": {
            "messages": [*SAID, {"role": "assistant", "content": "Hi, I am"}],
            "continue_final_message": True,
            "add_generation_prompt": False,
        },
        "labels, and a field nobody knows": {"user": "u1", "metadata": {"a": "b"}, "no_such_field": 1},
    },
)
COMPLETIONS = rows(
    "/v1/completions",
    {"model": "smollm2", "prompt": PROMPT, "temperature": 0, "max_tokens": 8},
    {
        "plain": {},
        "default max_tokens": {"max_tokens": ABSENT},
        "a list": {"prompt": [PROMPT, "One, two,"]},
        "a list of ids": {"prompt": [PROMPT_IDS, PROMPT_IDS[:3]]},
        "n": {"n": 2},
        "echo": {"echo": True},
        "echo, streamed": {"echo": True, **STREAM},
        "logprobs": {"logprobs": 3},
        "logprobs of zero": {"logprobs": 0},
        "echo and logprobs": {"echo": True, "logprobs": 2},
        "logprobs, streamed": {"logprobs": 2, **STREAM},
        "stop": {"stop": [",", "."]},
        "stop_token_ids": {"stop_token_ids": [28]},
        "min_tokens": {"min_tokens": 6, "stop_token_ids": [28], "max_tokens": 12},
        "suffix": {"suffix": " is the end"},
        "json_schema": {"json_schema": SCHEMA_TEXT, "max_tokens": 40},
        "regex": {"regex": " (red|green)"},
        "ebnf": {"ebnf": 'root ::= " Bob" | " Eve"'},
        "stream": STREAM,
        "a list, streamed": {"prompt": [PROMPT, "One, two,"], **STREAM},
        "include_usage": {**STREAM, "stream_options": {"include_usage": True}},
        "skip_special_tokens": {"prompt": "<|im_start|>user\nHi<|im_end|>\n", "skip_special_tokens": False},
        "max_tokens of zero": {"max_tokens": 0},
        "return_token_ids": {"return_token_ids": True},
        "echo of the prompt alone": {"max_tokens": 0, "echo": True, "logprobs": 1},
    },
)
SAMPLING = {"temperature": 0, "max_new_tokens": 8}
GENERATE = rows(
    "/generate",
    {"text": PROMPT, "sampling_params": SAMPLING},
    {
        "plain": {},
        "a list": {"text": [PROMPT, "One, two,"]},
        "a list of ids": {"text": ABSENT, "input_ids": [PROMPT_IDS, PROMPT_IDS[:3]]},
        "n": {"sampling_params": SAMPLING | {"n": 2}},
        "stream": STREAM,
        "a list, streamed": {"text": [PROMPT, "One, two,"], **STREAM},
        "return_logprob": {"return_logprob": True},
        "top_logprobs_num": {"return_logprob": True, "top_logprobs_num": 2},
        "logprob_start_len": {"return_logprob": True, "logprob_start_len": 0, "top_logprobs_num": 2},
        "return_text_in_logprobs": {"return_logprob": True, "return_text_in_logprobs": True},
        "logprobs, streamed": {"return_logprob": True, "top_logprobs_num": 2, **STREAM},
        "stop": {"sampling_params": SAMPLING | {"stop": [","]}},
        "stop_token_ids": {"sampling_params": SAMPLING | {"stop_token_ids": [28]}},
        "stop_regex": {"sampling_params": SAMPLING | {"stop_regex": "[.,]"}},
        "no_stop_trim": {"sampling_params": SAMPLING | {"stop": [","], "no_stop_trim": True}},
        "min_new_tokens": {"sampling_params": SAMPLING | {"min_new_tokens": 6, "stop_token_ids": [28]}},
        "json_schema": {"sampling_params": {"temperature": 0, "json_schema": SCHEMA_TEXT}},
        "regex": {"sampling_params": SAMPLING | {"regex": " (red|green)"}},
        "ebnf": {"sampling_params": SAMPLING | {"ebnf": 'root ::= " Bob" | " Eve"'}},
        "penalties": {"sampling_params": SAMPLING | {"frequency_penalty": 1.5, "repetition_penalty": 1.2}},
        "max_new_tokens of zero": {"sampling_params": SAMPLING | {"max_new_tokens": 0}},
        "skip_special_tokens": {
            "text": "<|im_start|>user\nHi<|im_end|>\n",
            "sampling_params": SAMPLING | {"skip_special_tokens": False},
        },
    },
)
TOKENS = [
    *rows(
        "/tokenize",
        {"model": "smollm2", "prompt": PROMPT},
        {
            "plain": {},
            "a list": {"prompt": [PROMPT, "Hi"]},
            "add_special_tokens": {"add_special_tokens": False},
            "messages": {"prompt": ABSENT, "messages": SAID},
        },
    ),
    *rows(
        "/detokenize",
        {"model": "smollm2", "tokens": PROMPT_IDS},
        {
            "plain": {},
            "a list": {"tokens": [PROMPT_IDS, PROMPT_IDS[:2]]},
            "special": {"tokens": [1, *PROMPT_IDS, 2], "skip_special_tokens": False},
            "special, left out": {"tokens": [1, *PROMPT_IDS, 2], "skip_special_tokens": True},
        },
    ),
]
RESPONSES = rows(
    "/v1/responses",
    {"model": "smollm2", "input": "Say hi", "temperature": 0, "max_output_tokens": 8},
    {
        "plain": {},
        "items": {"input": [{"role": "user", "content": "Say hi"}]},
        "instructions": {"instructions": "Be brief."},
        "labels, not stored": {"metadata": {"a": "b"}, "user": "u1", "store": False},
        "stream": STREAM,
    },
)
MESSAGES = rows(
    "/v1/messages",
    {"model": "smollm2", "messages": SAID, "temperature": 0, "max_tokens": 8},
    {
        "plain": {},
        "system": {"system": "Be brief."},
        "system blocks": {"system": [{"type": "text", "text": "Be"}, {"type": "text", "text": "brief."}]},
        "stop_sequences": {"stop_sequences": ["!"], "max_tokens": 20},
        "top_k of one": {"temperature": 0.9, "top_k": 1},
        "stream": STREAM,
        "tool_choice": {
            "max_tokens": 60,
            "tools": [{"name": "weather", "strict": True, "input_schema": TOOL["function"]["parameters"]}],
            "tool_choice": {"type": "tool", "name": "weather"},
        },
        "tool_choice, streamed": {
            "max_tokens": 60,
            "tools": [{"name": "weather", "strict": True, "input_schema": TOOL["function"]["parameters"]}],
            "tool_choice": {"type": "any"},
            **STREAM,
        },
    },
) + rows(
    "/v1/messages/count_tokens",
    {"model": "smollm2", "messages": SAID},
    {"plain": {}, "system": {"system": "Be brief."}},
)
GETS = [
    Row(path, "", None)
    for path in (
        "/v1/models",
        "/v1/models/smollm2",
        "/v1/models/other",
        "/model_info",
        "/get_model_info",
        "/server_info",
        "/get_server_info",
        "/health",
        "/health_generate",
        "/ping",
        "/version",
        "/no_such_path",
    )
]
ROWS = [*CHAT, *COMPLETIONS, *GENERATE, *TOKENS, *RESPONSES, *MESSAGES, *GETS]
