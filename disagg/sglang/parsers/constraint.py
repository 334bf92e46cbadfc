"""What makes an engine write the tool calls that a request asks for: a sampling entry, the same for both legs.

Way:   a request's tools and choice -> [tool_constraint] -> sampling parameters of both legs
Out:   SGLang's own constraint of its parser; where that has none for a required call, a JSON array by schema
Fails: ValueError for tools that contradict each other (two schemas of one name in their `$defs`)
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from disagg.sglang.parsers.detectors import accepted, vocabulary
from disagg.sglang.parsers.light_import import sglang_parsers
from disagg.sglang.parsers.setup import ParserSetup


@dataclass(frozen=True, slots=True)
class ToolConstraint:
    """`sampling` is empty where nothing is constrained; `as_array`: the calls are read as a JSON array."""

    sampling: dict[str, Any] = field(default_factory=dict)
    as_array: bool = False

    @property
    def is_of_whole_answers(self) -> bool:
        """It describes the reasoning, too."""
        return "ebnf_full_assistant" in self.sampling


def tool_constraint(
    setup: ParserSetup,
    tools: Sequence[dict[str, Any]],
    choice: str,
    named: str | None,
    *,
    parallel: bool = True,
    variables: Mapping[str, Any] | None = None,
) -> ToolConstraint:
    """`choice`: auto or required; `named`: the one function that must be called; `variables`: of the template.

    No constraint describes reasoning, but one that describes whole answers: an engine's grammar waits for its end.
    """
    parsers = sglang_parsers()
    read = [parsers.tool(**tool) for tool in tools]
    said = choice if named is None else parsers.tool_choice(type="function", function={"name": named})
    is_required = choice == "required" or named is not None
    found = None
    if setup.tools is not None:
        parser = parsers.function_call_parser(read, setup.tools, vocabulary(setup.added_tokens))
        thinks = _describes_whole_answers(parser) and (variables or {}).get("enable_thinking") in (None, True)
        ask = parser.get_structure_constraint
        found = ask(said, **accepted(ask, {"parallel_tool_calls": parallel, "thinking_mode": thinks}))
        if found is None and _reads_required(parser.detector):
            return ToolConstraint()
    if found is None and is_required:
        ask = parsers.json_schema_constraint
        found = "json_schema", ask(read, said, **accepted(ask, {"parallel_tool_calls": parallel}))
    if found is None:
        return ToolConstraint()
    kind, value = found
    if kind == "full_assistant_ebnf":
        return ToolConstraint({"ebnf": value, "ebnf_full_assistant": True})
    return ToolConstraint({kind: _text(value)}, as_array=kind == "json_schema")


def _reads_required(detector: Any) -> bool:
    reads = getattr(detector, "parses_required_natively", None)  # not in every release
    return bool(reads()) if reads is not None else False


def _describes_whole_answers(parser: Any) -> bool:
    return bool(getattr(parser.detector, "use_full_assistant_constraint", False))


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value if isinstance(value, dict) else value.model_dump(by_alias=True), ensure_ascii=False)
