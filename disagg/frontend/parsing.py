"""A deployment's parsers, and what they make of one request: what constrains its engines, and what reads its answer.

Way:   names of parsers -> [parser_setup], once; ToolUse and a Talk -> [Parsing.ask] -> Asking
Out:   sampling entries, the same for both legs; a ParsingPlan that all choices share
Fails: BadRequest for tools that nothing here reads, and for a call that is required beside another constraint;
       StartError for a parser that SGLang here does not have
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from disagg.errors import BadRequest, StartError
from disagg.fields import refuse
from disagg.frontend.output_parser import ParsingPlan, call_ids
from disagg.frontend.reasoning_tokens import ReasoningTokens
from disagg.frontend.talk import Talk
from disagg.frontend.text_facts import TextFacts
from disagg.frontend.tool_choice import ToolUse
from disagg.reasoning_end import after_reasoning
from disagg.sglang.parsers.constraint import ToolConstraint, tool_constraint
from disagg.sglang.parsers.light_import import are_loaded, sglang_parsers
from disagg.sglang.parsers.reasoning import Asked, ReasoningReaders
from disagg.sglang.parsers.setup import ParserSetup, set_up
from disagg.sglang.parsers.tools import ToolReaders

CONSTRAINT_BYTES_MAX = 256 << 10  # of all tools of a required call: some seconds and 300 MB in each scheduler


@dataclass(frozen=True, slots=True)
class Asking:
    """`sampling` for both legs; `keeps_special_tokens`: skip_special_tokens is false, whatever the client said."""

    plan: ParsingPlan
    sampling: Mapping[str, Any]
    require_reasoning: bool
    keeps_special_tokens: bool
    stop: tuple[str, ...] = ()  # beside the client's own stop strings


class Parsing:
    """The parsers of a deployment: `ask` once for each request, `reasoning_tokens` once for each of its choices."""

    def __init__(self, setup: ParserSetup, end_ids: Sequence[int] = ()) -> None:
        """`end_ids`: of the mark that ends reasoning."""
        self.setup, self._end_ids = setup, end_ids

    @property
    def is_idle(self) -> bool:
        """Whether only a request with tools needs it."""
        return self.setup.tools is None and self.setup.reasoning is None

    def ask(self, use: ToolUse, talk: Talk) -> Asking:
        """Where the model thinks, a constraint holds after its reasoning, as in SGLang: engines hear what ends it."""
        setup, constraint = self.setup, self._constraint(use, talk)
        is_thinking = setup.thinking.is_on(talk.variables, talk.effort)
        tools = reasoning = None
        if use.is_active:
            as_array = constraint.as_array or setup.tools is None
            tools = ToolReaders(setup.tools, use.tools, setup.added_tokens, as_array=as_array)
        # A constrained answer that does not think has none: what its constraint makes it say is no mark.
        may_reason = is_thinking or not talk.is_constrained
        if setup.reasoning is not None and talk.separate_reasoning and may_reason:
            asked = Asked(is_thinking, talk.variables, talk.effort, talk.continued, tools_follow=use.is_active)
            reasoning = ReasoningReaders(setup.reasoning, asked, setup.added_tokens)
        return Asking(
            plan=ParsingPlan(reasoning, tools, call_ids(setup.tools, talk.earlier_calls), talk.stream_reasoning),
            sampling=constraint.sampling | self._waits_for_reasoning(is_thinking, constraint, talk),
            require_reasoning=is_thinking,
            keeps_special_tokens=use.is_active or (setup.marks is not None and setup.marks.keeps_special_tokens),
            stop=(setup.call_stop,) if use.is_active and setup.call_stop else (),
        )

    async def load(self, use: ToolUse) -> None:
        """Before `ask`, where this request is the first that needs SGLang's parsers: they are imported in a thread."""
        if use.is_active and not are_loaded():
            await asyncio.to_thread(sglang_parsers)

    def reasoning_tokens(self, asking: Asking) -> ReasoningTokens:
        """Of one choice."""
        return ReasoningTokens(self._end_ids if asking.require_reasoning else ())

    def _waits_for_reasoning(self, is_thinking: bool, constraint: ToolConstraint, talk: Talk) -> dict[str, Any]:
        is_constrained = talk.is_constrained or bool(constraint.sampling)
        if not (is_thinking and is_constrained and self._end_ids) or constraint.is_of_whole_answers:
            return {}
        return after_reasoning(self._end_ids)

    def _constraint(self, use: ToolUse, talk: Talk) -> ToolConstraint:
        if not use.is_active:
            return ToolConstraint()
        if self.setup.tools is None and not use.is_required:
            what = "'tools': this deployment reads no tool calls; an operator would set model.tool_call_parser"
            refuse("tools", "unsupported_parameter", what)
        if talk.is_constrained:
            if use.is_required or any(tool["function"]["strict"] for tool in use.tools):
                what = "'tool_choice': a required or strict call cannot be had beside another constraint of the answer"
                refuse("tool_choice", "invalid_value", f"{what}; leave out response_format, or the constraint it is")
            return ToolConstraint()
        try:
            made = tool_constraint(
                self.setup, use.tools, use.choice, use.named, parallel=use.parallel, variables=talk.variables
            )
        except (ValueError, TypeError, AttributeError, LookupError) as error:  # of a schema that is none
            what = f"'tools': no constraint can be made of their parameters: {error}"
            raise BadRequest("tools", "invalid_value", what) from error
        if any(isinstance(said, str) and len(said.encode()) > CONSTRAINT_BYTES_MAX for said in made.sampling.values()):
            what = f"'tools': what constrains a required call is larger than {CONSTRAINT_BYTES_MAX} bytes"
            refuse("tools", "schema_too_large", f"{what}; send fewer tools, or smaller schemas")
        return made


NO_PARSERS = Parsing(ParserSetup())


def parser_setup(tool_parser: str | None, reasoning_parser: str | None, facts: TextFacts) -> ParserSetup:
    """Raises StartError."""
    try:
        return set_up(tool_parser, reasoning_parser, facts.template, facts.added_tokens, facts.architecture)
    except (ImportError, ValueError) as error:
        would_do = "set model.tool_call_parser and model.reasoning_parser to names that it has, or leave them out"
        raise StartError("model", str(error), would_do) from error
