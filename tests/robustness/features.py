"""One request of every kind that an answer can be: what is sent, what the engines say, what its client is to get."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any

from strictly import Asked, Choice
from tool_formats import TOOLS

WORDS = 'Grüße, "Tromsø" 🎾\n\ta\u2028b\u0085c \\ end; ' + " ".join(f"w{number}" for number in range(12)) + "."
OTHERS = [WORDS, "Two. " * 12, "Drei 🎾 " * 8, "4, " * 20]
THOUGHT = "Let me see: 2 < 3, so \u2028 it is. " * 2
CALL = {"city": "Tromsø 🎾", "days": 3}
CALLS = "".join(
    f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments}, ensure_ascii=False)}\n</tool_call>\n"
    for name, arguments in (("get_weather", CALL), ("get_time", {"zone": "Europe/Oslo"}))
)
REQUIRED = json.dumps([{"name": "get_weather", "parameters": CALL}], ensure_ascii=False)
OBJECT = json.dumps({"name": "Tromsø 🎾", "items": [{"n": number} for number in range(8)]}, ensure_ascii=False)
SCHEMA = {"type": "json_schema", "json_schema": {"name": "thing", "schema": {"type": "object"}}}
ASK = [{"role": "user", "content": "Hi"}]
CHAT_TOOLS = {"tools": TOOLS, "chat_template_kwargs": {"enable_thinking": False}}
USAGE = {"stream_options": {"include_usage": True}}
GRAMMAR = "its grammar stands where"
CONTINUOUS = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}


@dataclass(frozen=True)
class Feature:
    api: str
    body: dict[str, Any]
    says: tuple[str, ...] = (WORDS,)  # of each sample
    wants: Choice = field(default_factory=lambda: Choice(WORDS))  # of the first
    asked: Asked = field(default_factory=Asked)
    parses: bool = False  # the deployment has parsers
    stays: str = ""  # why its stream cannot go on elsewhere
    echoed: str = ""
    tokens: int | None = None  # where it ends before its script does
    streamed_body: dict[str, Any] = field(default_factory=dict)  # where it streams alone

    def wanted(self, index: int) -> Choice:
        wants = self.wants if index == 0 else Choice(self.echoed + self.says[index])
        return replace(wants, finish_reason=wants.finish_reason or "stop")

    def body_of(self, *, is_stream: bool) -> dict[str, Any]:
        return {**self.body, "stream": is_stream} | (self.streamed_body if is_stream else {})


def _cut_at(tokens: int) -> str:
    """A token is a byte, but for the end of the answer; half a character at a limit is none."""
    return WORDS.encode()[:tokens].decode(errors="replace")


def _chat(**more: Any) -> dict[str, Any]:
    return {"messages": ASK, **more}


def _calls(text: str = "", reasoning: str = "", *, one: bool = False) -> Choice:
    said = [("get_weather", CALL), ("get_time", {"zone": "Europe/Oslo"})][: 1 if one else 2]
    return Choice(text, reasoning, [(name, json.dumps(arguments)) for name, arguments in said], "tool_calls")


_USAGE, _CONTINUOUS = Asked(include_usage=True), Asked(include_usage=True, continuous_usage=True)
_RESPONSES_TOOLS = [{"type": "function", **tool["function"]} for tool in TOOLS]
_MESSAGES_TOOLS = [{"name": tool["function"]["name"], "input_schema": tool["function"]["parameters"]} for tool in TOOLS]
_THINKS = f"<think>{THOUGHT}</think>{WORDS}"
_FOUR = tuple(OTHERS)

LONG = {"max_tokens": 500}  # a completion without it has 16
FEATURES: dict[str, Feature] = {
    "chat": Feature("chat", _chat()),
    "chat, usage": Feature("chat", _chat(), asked=_USAGE, streamed_body=USAGE),
    "chat, usage of each chunk": Feature("chat", _chat(), asked=_CONTINUOUS, streamed_body=CONTINUOUS),
    "chat, n": Feature("chat", _chat(n=4), _FOUR, asked=Asked(4, include_usage=True), streamed_body=USAGE),
    "chat, logprobs": Feature("chat", _chat(logprobs=True, top_logprobs=2), asked=Asked(logprobs=True)),
    "chat, n, logprobs": Feature(
        "chat", _chat(n=4, logprobs=True, top_logprobs=1), _FOUR, asked=Asked(4, logprobs=True)
    ),
    "chat, stop": Feature("chat", _chat(stop=["w7", "w9"]), wants=Choice(WORDS.partition("w7")[0])),
    "chat, its limit": Feature(
        "chat", _chat(max_tokens=30), wants=Choice(_cut_at(30), finish_reason="length"), tokens=30
    ),
    "chat, token ids": Feature("chat", _chat(return_token_ids=True)),
    "chat, json_schema": Feature("chat", _chat(response_format=SCHEMA), (OBJECT,), Choice(OBJECT), stays=GRAMMAR),
    "chat, penalty": Feature("chat", _chat(frequency_penalty=0.5), stays="penalties count the tokens so far"),
    "chat, tools": Feature("chat", _chat(**CHAT_TOOLS), (CALLS,), _calls(), parses=True),
    "chat, tools, words before": Feature(
        "chat", _chat(**CHAT_TOOLS), (f"I look:{CALLS}",), _calls("I look:"), parses=True
    ),
    "chat, tools, none called": Feature("chat", _chat(**CHAT_TOOLS), (WORDS,), Choice(WORDS), parses=True),
    "chat, tools, n": Feature(
        "chat", _chat(n=2, **CHAT_TOOLS), (CALLS, "No call. " * 8), _calls(), Asked(2), parses=True
    ),
    "chat, tools required": Feature(
        "chat",
        _chat(**CHAT_TOOLS, tool_choice="required"),
        (REQUIRED,),
        _calls(one=True),
        stays=GRAMMAR,
    ),
    "chat, reasoning": Feature(
        "chat", _chat(), (_THINKS,), Choice(WORDS, THOUGHT), asked=_USAGE, streamed_body=USAGE, parses=True
    ),
    "chat, reasoning, tools": Feature(
        "chat", _chat(tools=TOOLS), (f"<think>{THOUGHT}</think>{CALLS}",), _calls("", THOUGHT), parses=True
    ),
    "text": Feature("text", {**LONG, "prompt": "Hi"}),
    "text, usage": Feature("text", {**LONG, "prompt": "Hi"}, asked=_USAGE, streamed_body=USAGE),
    "text, usage of each chunk": Feature("text", {**LONG, "prompt": "Hi"}, asked=_CONTINUOUS, streamed_body=CONTINUOUS),
    "text, n": Feature("text", {**LONG, "prompt": "Hi", "n": 4}, _FOUR, asked=Asked(4)),
    "text, batch": Feature("text", {**LONG, "prompt": ["Hi", "Ho"], "n": 2}, _FOUR, asked=Asked(4)),
    "text, logprobs": Feature("text", {**LONG, "prompt": "Hi", "logprobs": 2}, asked=Asked(logprobs=True)),
    "text, echo": Feature(
        "text", {**LONG, "prompt": "Hi: ", "echo": True}, wants=Choice("Hi: " + WORDS), echoed="Hi: "
    ),
    "text, echo of a batch": Feature(
        "text",
        {**LONG, "prompt": ["Hi: ", "Hi: "], "echo": True},
        _FOUR[:2],
        Choice("Hi: " + WORDS),
        Asked(2),
        echoed="Hi: ",
    ),
    "text, stop": Feature("text", {**LONG, "prompt": "Hi", "stop": "w7"}, wants=Choice(WORDS.partition("w7")[0])),
    "text, regex": Feature(
        "text", {**LONG, "prompt": "Hi", "regex": "a*"}, ("a" * 70,), Choice("a" * 70), stays=GRAMMAR
    ),
    "text, stop_regex": Feature("text", {**LONG, "prompt": "Hi", "stop_regex": "x+"}, stays="stop_regex looks for"),
    "generate": Feature("generate", {"text": "Hi"}),
    "generate, n": Feature("generate", {"text": "Hi", "sampling_params": {"n": 4}}, _FOUR, asked=Asked(4)),
    "generate, batch": Feature("generate", {"text": ["Hi", "Ho"]}, _FOUR[:2], asked=Asked(2)),
    "generate, logprobs": Feature(
        "generate", {"text": "Hi", "return_logprob": True, "top_logprobs_num": 2}, asked=Asked(logprobs=True)
    ),
    "responses": Feature("responses", {"input": "Hi"}),
    "responses, logprobs": Feature(
        "responses",
        {"input": "Hi", "include": ["message.output_text.logprobs"], "top_logprobs": 2},
        asked=Asked(logprobs=True),
    ),
    "responses, its limit": Feature(
        "responses",
        {"input": "Hi", "max_output_tokens": 30},
        wants=Choice(_cut_at(30), finish_reason="length"),
        tokens=30,
    ),
    "responses, json_schema": Feature(
        "responses",
        {"input": "Hi", "text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "object"}}}},
        (OBJECT,),
        Choice(OBJECT),
        stays=GRAMMAR,
    ),
    "responses, reasoning": Feature("responses", {"input": "Hi"}, (_THINKS,), Choice(WORDS, THOUGHT), parses=True),
    "responses, tools": Feature(
        "responses",
        {"input": "Hi", "tools": _RESPONSES_TOOLS},
        (f"<think>{THOUGHT}</think>{CALLS}",),
        _calls("", THOUGHT),
        parses=True,
    ),
    "messages": Feature("messages", {"messages": ASK, "max_tokens": 500}),
    "messages, stop": Feature(
        "messages",
        {"messages": ASK, "max_tokens": 500, "stop_sequences": ["w7"]},
        wants=Choice(WORDS.partition("w7")[0]),
    ),
    "messages, thinking": Feature(
        "messages",
        {"messages": ASK, "max_tokens": 500, "thinking": {"type": "enabled", "budget_tokens": 1024}},
        (_THINKS,),
        Choice(WORDS, THOUGHT),
        parses=True,
    ),
    "messages, tools": Feature(
        "messages",
        {"messages": ASK, "max_tokens": 500, "tools": _MESSAGES_TOOLS},
        (CALLS,),
        _calls(),
        parses=True,
    ),
}
