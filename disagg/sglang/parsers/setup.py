"""The parsers of a deployment, found once at its start: `auto` is replaced by names, the template's switches are read.

Way:   model.tool_call_parser, model.reasoning_parser, the model's template and tokens -> [set_up] -> ParserSetup
Out:   names and rules; nothing of it depends on a request
Fails: ImportError where a parser is wanted and SGLang is not installed; ValueError for a name that it does not have

`auto` goes by the rules of the installed SGLang. They look for texts in the template and for added tokens. Where they
find none the model's architecture decides, by SGLang's table for models without a template.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from disagg.sglang.parsers.detectors import Vocabulary
from disagg.sglang.parsers.light_import import sglang_parsers
from disagg.sglang.parsers.names import parser_names
from disagg.sglang.parsers.reasoning import ReasoningMarks, reasoning_marks
from disagg.sglang.parsers.thinking import Thinking

log = logging.getLogger(__name__)
AUTO = "auto"
NEVER = Thinking()
# A part of an architecture's name -> parsers of tool calls and of reasoning: SGLang's _architecture_auto_parsers.
BY_ARCHITECTURE = {
    "KimiK3": ("kimi_k3", "kimi_k3"),
    "kimi_k3": ("kimi_k3", "kimi_k3"),  # where config.json names a model_type alone
    "DeepseekV4": ("deepseekv4", "deepseek-v4"),
    "DeepseekV3": ("deepseekv32", "deepseek-v3"),
}
# What follows a call's last token is no part of the answer: SGLang's serving_chat ends it there.
ENDS_WITH_CALLS = ("kimi_k3",)


@dataclass(frozen=True, slots=True)
class ParserSetup:
    tools: str | None = None
    reasoning: str | None = None
    thinking: Thinking = NEVER
    marks: ReasoningMarks | None = None
    added_tokens: tuple[str, ...] = ()
    call_stop: str = ""  # a stop string of each request with tools


def set_up(
    tools: str | None,
    reasoning: str | None,
    template: str | None,
    added_tokens: Mapping[str, bool],
    architecture: str = "",
) -> ParserSetup:
    """`architecture`: as config.json names it. `added_tokens`: those that the tokenizer has beside its vocabulary, and
    whether each is special: left out of a text, if one wishes."""
    if tools is None and reasoning is None:
        return ParserSetup()  # SGLang is not imported
    tokens = tuple(added_tokens)
    detection = sglang_parsers().template_detection
    is_forced, config = detection.detect_reasoning_pattern(template)
    vocabulary, named = Vocabulary(tokens), _by_architecture(architecture)
    if tools == AUTO:
        found = detection.detect_tool_call_parser(template, vocabulary, config, is_forced)
        tools = _told("tool_call_parser", found or named[0])
    if reasoning == AUTO:
        found = detection.detect_reasoning_parser(template, vocabulary, config, is_forced)
        reasoning = _told("reasoning_parser", found or named[1])
    _check(tools, reasoning)
    marks = (
        reasoning_marks(reasoning, tokens, {token for token in tokens if added_tokens[token]}) if reasoning else None
    )
    thinking = Thinking(
        parser=reasoning,
        toggle=getattr(config, "toggle_param", None),
        is_default=getattr(config, "default_enabled", None),
        special=getattr(config, "special_case", None),
        is_template_known=config is not None,
        usual=marks.default if marks else None,
    )
    call_stop = ""
    if tools in ENDS_WITH_CALLS:
        call_stop = sglang_parsers().function_call_parser([], tools, vocabulary).detector.eot_token
    return ParserSetup(tools, reasoning, thinking, marks, tokens, call_stop)


def _by_architecture(architecture: str) -> tuple[str | None, str | None]:
    names = parser_names()
    for part, (tools, reasoning) in BY_ARCHITECTURE.items():
        if part in architecture and names is not None:
            return (tools if tools in names.tools else None, reasoning if reasoning in names.reasoning else None)
    return None, None


def _told(key: str, found: str | None) -> str | None:
    if found is None:
        log.warning("model.%s: auto finds none for the model's template and architecture; there is none, then", key)
    else:
        log.info("model.%s: auto is %s", key, found)
    return found


def _check(tools: str | None, reasoning: str | None) -> None:
    names = parser_names()
    assert names is not None  # it was imported above
    for name, known in ((tools, names.tools), (reasoning, names.reasoning)):
        if name is not None and name not in known:
            raise ValueError(f"SGLang here has no parser {name!r}; it has {', '.join(known)}")
