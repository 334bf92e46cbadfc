"""Calls that a JSON schema made the engine write: a JSON array of {"name": …, "parameters": {…}}.

Way:   tools.py -> [ArrayParser] -> SGLang's JsonArrayParser for a stream; for a whole text its server's own reading
Out:   the methods of SGLang's FunctionCallParser, so that one reader serves both
"""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

from disagg.sglang.parsers.light_import import sglang_parsers


class ArrayParser:
    def __init__(self, tools: list[Any]) -> None:
        self.detector = sglang_parsers().json_array_parser()
        self._tools = tools

    def has_tool_call(self, text: str) -> bool:
        return bool(self.detector.has_tool_call(text))

    def parse_stream_chunk(self, text: str) -> tuple[str, list[Any]]:
        said = self.detector.parse_streaming_increment(text, self._tools)
        return said.normal_text, said.calls

    def parse_non_stream(self, text: str) -> tuple[str, list[Any]]:
        """A text that is no such array is the answer itself, as when it was cut short."""
        try:
            read = json.loads(text)
        except ValueError:
            return text, []
        calls = read if isinstance(read, list) else [read]
        if not all(isinstance(call, dict) and isinstance(call.get("name"), str) for call in calls):
            return text, []
        return "", [
            SimpleNamespace(name=call["name"], parameters=json.dumps(_arguments(call), ensure_ascii=False))
            for call in calls
        ]


def _arguments(call: dict[str, Any]) -> Any:
    return call.get("parameters", call.get("arguments", {}))
