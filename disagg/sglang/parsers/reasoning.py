"""One choice's reasoning, told from what the user reads by SGLang's parser of a name.

Way:   text of a choice -> [ReasoningReader] -> reasoning; the rest -> ToolReader, or the user
In:    text cut anywhere; whether the model was asked to think, as thinking.py says
Out:   as the text comes, the same however it was cut; or, of a whole text, SGLang's `parse_non_stream`
Fails: whatever SGLang's parser raises; ImportError without SGLang
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, NamedTuple

from disagg.sglang.parsers.detectors import accepted, markers, vocabulary
from disagg.sglang.parsers.lexemes import Lexemes
from disagg.sglang.parsers.light_import import sglang_parsers


class ReasonedText(NamedTuple):
    reasoning: str
    text: str


@dataclass(frozen=True, slots=True)
class Asked:
    """What of a request decides how its answer is read."""

    is_thinking: bool | None = None  # None: as the parser takes it by default
    template_variables: Mapping[str, Any] = field(default_factory=dict)
    effort: str | None = None
    continued: str | None = None  # the assistant's text that the answer goes on with
    tools_follow: bool = False  # a tool parser reads what is left


class ReasoningReaders:
    """Makes the readers of one request's choices."""

    def __init__(self, name: str, asked: Asked, added_tokens: Iterable[str] = ()) -> None:
        self._name, self._asked, self._vocabulary = name, asked, vocabulary(added_tokens)

    def reader(self) -> ReasoningReader:
        return ReasoningReader(self.parser(is_stream=True))

    def whole(self, text: str) -> ReasonedText:
        reasoning, rest = self.parser(is_stream=False).parse_non_stream(text)
        return ReasonedText(reasoning or "", rest or "")

    def parser(self, *, is_stream: bool) -> Any:
        asked, parser = self._asked, sglang_parsers().reasoning_parser
        wanted = {
            "stream_reasoning": is_stream,
            "force_reasoning": asked.is_thinking,
            "request": _request(asked),
            "tokenizer": self._vocabulary,
            "tool_call_parser_active": asked.tools_follow,
        }
        return parser(self._name, **accepted(parser, wanted))


class ReasoningReader:
    """Reads one choice as it comes: `push` any number of times, then `end`."""

    def __init__(self, parser: Any) -> None:
        self._parser, self._lexemes = parser, Lexemes()

    def push(self, text: str) -> ReasonedText:
        self._lexemes.push(text)
        return self._feed(last=False)

    def end(self) -> ReasonedText:
        reasoning, text = self._feed(last=True)
        if hasattr(self._parser, "parse_stream_end"):  # not in every release
            more_reasoning, more_text = self._parser.parse_stream_end()
            reasoning, text = reasoning + (more_reasoning or ""), text + (more_text or "")
        return ReasonedText(reasoning, text)

    def _feed(self, *, last: bool) -> ReasonedText:
        reasoning, text = "", ""
        while (unit := self._lexemes.take(0, in_call=False, last=last)) is not None:
            more_reasoning, more_text = self._parser.parse_stream_chunk(unit)
            reasoning, text = reasoning + (more_reasoning or ""), text + (more_text or "")
        return ReasonedText(reasoning, text)


class ReasoningMarks(NamedTuple):
    """What the rest of the deployment has to know of a reasoning parser."""

    end: str  # ends the reasoning: engines count its tokens up to here, and hold their grammars back until then
    default: str | None  # when its models think, where their template does not say
    keeps_special_tokens: bool  # its marks are special tokens, which must be in the text


def reasoning_marks(name: str, added_tokens: Iterable[str], special_tokens: Iterable[str]) -> ReasoningMarks:
    detector = ReasoningReaders(name, Asked(), added_tokens).parser(is_stream=True).detector
    found = any(token in marker for token in special_tokens if token for marker in markers(detector))
    return ReasoningMarks(detector.think_end_token, getattr(detector, "reasoning_default", None), found)


def _request(asked: Asked) -> Any:
    """As much of a request as the parser looks at; unchecked, since it is none of a client's."""
    given = {
        "chat_template_kwargs": dict(asked.template_variables),
        "reasoning_effort": asked.effort,
        "continue_final_message": asked.continued is not None,
        "messages": [SimpleNamespace(role="assistant", content=asked.continued or "")],
        "reasoning": None,
    }
    return sglang_parsers().chat_request.model_construct(**given)
