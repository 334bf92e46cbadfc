"""Clients of every kind of answer, side by side on a real deployment: each byte of theirs is read strictly."""

from __future__ import annotations

import json
import threading
from typing import Any

import httpx
from deployment import Deployment

from tests.robustness.strictly import Asked, Said, read_stream, read_whole

GRAMMAR = "its grammar stands where"
TOOL = {
    "type": "function",
    "function": {
        "name": "plan",
        "parameters": {
            "type": "object",
            "properties": {"days": {"type": "array", "items": {"type": "integer"}, "minItems": 24, "maxItems": 24}},
            "required": ["days"],
            "additionalProperties": False,
        },
    },
}
SCHEMA = {"name": "plan", "strict": True, "schema": TOOL["function"]["parameters"]}  # type: ignore[index]
# What each is asked for; whether a grammar says how its answer is written.
FEATURES: dict[str, tuple[dict[str, Any], Asked, bool]] = {
    "n": ({"n": 4, "temperature": 0.8, "seed": 7, "max_tokens": 64}, Asked(4), False),
    "logprobs": ({"logprobs": True, "top_logprobs": 2, "max_tokens": 64}, Asked(logprobs=True), False),
    "tools": ({"tools": [TOOL], "tool_choice": "required", "max_tokens": 200}, Asked(), True),
    "json_schema": (
        {"response_format": {"type": "json_schema", "json_schema": SCHEMA}, "max_tokens": 200},
        Asked(),
        True,
    ),
}
# SmolLM2's own shows no tools.
TEMPLATE = (
    "{% for tool in tools or [] %}{{ tool | tojson }}\n{% endfor %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class FeatureClient(threading.Thread):
    def __init__(self, deployment: Deployment, name: str, *, is_stream: bool, words: str = "Plan my week.") -> None:
        super().__init__(daemon=True)
        fields, self._asked, self.is_constrained = FEATURES[name]
        messages = [{"role": "user", "content": words}]
        self._body = {"model": "smollm2", "messages": messages, "temperature": 0, "stream": is_stream, **fields}
        self._url, self.is_stream, self.name = f"{deployment.url}/v1/chat/completions", is_stream, name
        self.status, self.data, self.request_id = 0, b"", ""
        self.start()

    def run(self) -> None:
        with httpx.stream("POST", self._url, json=self._body, timeout=300, trust_env=False) as answer:
            self.status, self.request_id = answer.status_code, answer.headers["x-request-id"]
            for part in answer.iter_raw():
                self.data += part

    def has_begun(self) -> bool:
        """Each choice of a stream has named its role, and more. (Of the others nothing is heard before their end.)"""
        return not self.is_stream or not self.is_alive() or self.data.count(b"data: ") > self._asked.choices

    def __repr__(self) -> str:
        return f"{self.name}: {self.status} {self.data[-200:]!r}"

    def samples(self) -> int:
        return self._asked.choices

    def said(self, limit_s: float) -> Said:
        self.join(limit_s)
        assert not self.is_alive(), f"{self.name} hangs after {self.data[-300:]!r}"
        assert self.status == 200, (self.name, self.status, self.data)
        return (read_stream if self.is_stream else read_whole)("chat", self.data, self._asked)


def open_all(deployment: Deployment, words: str = "Plan my week.") -> list[FeatureClient]:
    return [
        FeatureClient(deployment, name, is_stream=is_stream, words=words)
        for name in FEATURES
        for is_stream in (True, False)
    ]


def told(said: Said) -> dict[int, tuple[Any, ...]]:
    """All but logprobs, whose last digits depend on who else is in the batch."""
    return {
        index: (choice.text, [(name, json.loads(arguments)) for name, arguments in choice.calls], choice.finish_reason)
        for index, choice in said.choices.items()
    }


def assert_survived(clients: list[FeatureClient], wanted: dict[str, Said], limit_s: float) -> list[str]:
    """Each has its undisturbed answer, or was told why its stream could not go on; the names of the latter."""
    cut = []
    for client in clients:
        said, want = client.said(limit_s), wanted[client.name]
        if client.is_constrained and client.is_stream and said.error is not None:
            assert said.error["code"] == "leg_lost"
            assert GRAMMAR in said.error["message"]
            cut.append(client.name)
            continue
        assert said.error is None, (client.name, said.error)
        assert told(said) == told(want), (client.name, client.is_stream)
        for index, choice in said.choices.items():
            assert len(choice.logprobs) == len(want.choices[index].logprobs)
            pairs = zip(choice.logprobs, want.choices[index].logprobs, strict=True)
            assert all(abs(one - other) < 1e-3 for one, other in pairs), client.name
    return cut
