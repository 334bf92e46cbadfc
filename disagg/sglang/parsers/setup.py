"""The parsers of a deployment, found once at its start: `auto` is replaced by names, the template's switches are read.

Way:   model.tool_call_parser, model.reasoning_parser, the model's template and tokens -> [set_up] -> ParserSetup
Out:   names and rules; nothing of it depends on a request
Fails: ImportError where a parser is wanted and SGLang is not installed; ValueError for a name that it does not have

`auto` goes by the rules of the installed SGLang. They look for texts in the template and for added tokens.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from disagg.sglang.parsers.detectors import Vocabulary
from disagg.sglang.parsers.light_import import sglang_parsers
from disagg.sglang.parsers.names import parser_names
from disagg.sglang.parsers.reasoning import ReasoningMarks, reasoning_marks
from disagg.sglang.parsers.thinking import Thinking

log = logging.getLogger(__name__)
AUTO = "auto"
NEVER = Thinking()


@dataclass(frozen=True, slots=True)
class ParserSetup:
    tools: str | None = None
    reasoning: str | None = None
    thinking: Thinking = NEVER
    marks: ReasoningMarks | None = None
    added_tokens: tuple[str, ...] = ()


def set_up(
    tools: str | None, reasoning: str | None, template: str | None, added_tokens: Mapping[str, bool]
) -> ParserSetup:
    """`added_tokens`: those that the tokenizer has beside its vocabulary, and whether each is special: left out of a
    text, if one wishes."""
    if tools is None and reasoning is None:
        return ParserSetup()  # SGLang is not imported
    tokens = tuple(added_tokens)
    detection = sglang_parsers().template_detection
    is_forced, config = detection.detect_reasoning_pattern(template)
    if tools == AUTO:
        tools = _detected("tool_call_parser", detection.detect_tool_call_parser, template, tokens, config, is_forced)
    if reasoning == AUTO:
        reasoning = _detected(
            "reasoning_parser", detection.detect_reasoning_parser, template, tokens, config, is_forced
        )
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
    return ParserSetup(tools, reasoning, thinking, marks, tokens)


def _detected(
    key: str, detect: Any, template: str | None, tokens: tuple[str, ...], config: Any, is_forced: bool
) -> str | None:
    found: str | None = detect(template, Vocabulary(tokens), config, is_forced)
    if found is None:
        log.warning("model.%s: auto finds none for the model's chat template; there is none, then", key)
    else:
        log.info("model.%s: auto is %s", key, found)
    return found


def _check(tools: str | None, reasoning: str | None) -> None:
    names = parser_names()
    assert names is not None  # it was imported above
    for name, known in ((tools, names.tools), (reasoning, names.reasoning)):
        if name is not None and name not in known:
            raise ValueError(f"SGLang here has no parser {name!r}; it has {', '.join(known)}")
