"""A request's tools: which there are, which may or must be called, and what of it the model's template shows.

Way:   JSON body -> [tool_use_of] -> ToolUse -> chat template; constraint and parsers (disagg/sglang/parsers)
In:    `tools`, `tool_choice` (auto, none, required, one function, or allowed ones), `parallel_tool_calls`
Out:   plain data, checked: at most TOOLS_MAX tools, names of OpenAI's pattern, schemas within bounds
Fails: BadRequest, naming the parameter
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from disagg.fields import Body, boolean, is_deeper, refuse, wrong_type
from disagg.frontend.constraints import SCHEMA_NODES_MAX, check_nodes

TOOLS_MAX = 128
TOOL_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
DESCRIPTION_CHARACTERS_MAX = 16_384
SCHEMA_BYTES_MAX = 64 << 10  # of one tool
SCHEMA_DEPTH_MAX = 24
# Values and names in all of them together: the event loop takes them over, also those that no template shows.
SCHEMAS_NODES_MAX = SCHEMA_NODES_MAX
CHOICES = ("auto", "none", "required")
DEPRECATED = {"functions": "tools", "function_call": "tool_choice"}
SILENT_CHOICES = ("none", "auto", None)  # what clients send beside no tools


class ToolUse(msgspec.Struct, frozen=True, kw_only=True):
    """`tools`: those that may be called, in OpenAI's form; empty where none may."""

    tools: list[dict[str, Any]] = []
    choice: str = "none"  # auto, none, required
    named: str | None = None  # this one function must be called
    parallel: bool = True

    @property
    def is_active(self) -> bool:
        """The template shows tools and the answer is read for calls. Its special tokens must then stay in its text:
        skip_special_tokens is false for both legs and for our own detokenizer."""
        return bool(self.tools)

    @property
    def is_required(self) -> bool:
        return self.choice == "required" or self.named is not None

    @property
    def shown(self) -> list[dict[str, Any]] | None:
        """What the chat template gets as `tools`."""
        shown = [tool for tool in self.tools if self.named in (None, tool["function"]["name"])]
        return shown or None


def tool_use_of(body: Body) -> ToolUse:
    for name, newer in DEPRECATED.items():
        if body.get(name) not in (None, [], "none", "auto"):
            what = f"'{name}' is the form of 2023 and not supported here; say '{newer}'"
            refuse(name, "unsupported_parameter", what)
    tools = _tools(body.get("tools"))
    parallel = boolean(body, "parallel_tool_calls", absent=True)
    said = body.get("tool_choice")
    if not tools:
        if said not in SILENT_CHOICES:
            refuse("tool_choice", "invalid_value", "'tool_choice' asks for a call, and 'tools' is empty; send 'tools'")
        return ToolUse()
    if said is None or isinstance(said, str):
        choice = _one_of(said or "auto", CHOICES, "tool_choice")
        return ToolUse(tools=[] if choice == "none" else tools, choice=choice, parallel=parallel)
    if not isinstance(said, dict):
        wrong_type("tool_choice", "a string or an object", said)
    if said.get("type") == "allowed_tools":
        return _allowed(said, tools, parallel)
    if said.get("type") != "function":
        what = "'tool_choice.type' must be 'function' or 'allowed_tools'"
        refuse("tool_choice.type", "invalid_value", what)
    return ToolUse(tools=tools, choice="required", named=_known(said, tools, "tool_choice"), parallel=parallel)


def _allowed(said: dict[str, Any], tools: list[dict[str, Any]], parallel: bool) -> ToolUse:
    """{"type": "allowed_tools", "allowed_tools": {"mode": …, "tools": […]}}, or flat, as Responses has it."""
    here, inner = "tool_choice", said
    if "allowed_tools" in said:
        here, inner = "tool_choice.allowed_tools", said["allowed_tools"]
    if not isinstance(inner, dict):
        wrong_type(here, "an object", inner)
    mode = _one_of(inner.get("mode", "auto"), ("auto", "required"), f"{here}.mode")
    listed = inner.get("tools")
    if not isinstance(listed, list):
        wrong_type(f"{here}.tools", "a list", listed)
    if not listed:
        refuse(f"{here}.tools", "empty_array", f"'{here}.tools' is empty; say 'tool_choice': 'none' instead")
    if len(listed) > TOOLS_MAX:
        refuse(f"{here}.tools", "array_above_max_length", f"'{here}.tools' has more than {TOOLS_MAX} entries")
    names = {_known(each, tools, f"{here}.tools[{index}]") for index, each in enumerate(listed)}
    kept = [tool for tool in tools if tool["function"]["name"] in names]
    return ToolUse(tools=kept, choice=mode, parallel=parallel)


def _known(said: Any, tools: list[dict[str, Any]], here: str) -> str:
    """The name in {"type": "function", "function": {"name": …}}, or in the flat form, of a tool that was sent."""
    inner = said.get("function", said) if isinstance(said, dict) else said
    name = inner.get("name") if isinstance(inner, dict) else None
    if not isinstance(name, str):
        refuse(
            here, "invalid_value", f"'{here}' must name a function: {{'type': 'function', 'function': {{'name': …}}}}"
        )
    if all(tool["function"]["name"] != name for tool in tools):
        refuse(here, "invalid_value", f"'{here}' names '{name[:64]}', which is not among 'tools'")
    return name


def _one_of(said: Any, known: tuple[str, ...], here: str) -> str:
    if said not in known:
        refuse(here, "invalid_value", f"'{here}' must be one of {', '.join(known)}, or an object")
    return str(said)


def _tools(given: Any) -> list[dict[str, Any]]:
    if given is None:
        return []
    if not isinstance(given, list):
        wrong_type("tools", "a list", given)
    if len(given) > TOOLS_MAX:
        refuse("tools", "array_above_max_length", f"'tools' has {len(given)} entries; at most {TOOLS_MAX} are allowed")
    tools, nodes = [], 0
    for index, each in enumerate(given):
        tool, more = _tool(each, f"tools[{index}]")
        nodes += more
        if nodes > SCHEMAS_NODES_MAX:
            what = f"'tools' have more than {SCHEMAS_NODES_MAX} values and names in their parameters"
            refuse("tools", "schema_too_large", f"{what}; send fewer tools, or smaller schemas")
        tools.append(tool)
    seen: set[str] = set()
    for index, tool in enumerate(tools):
        name = tool["function"]["name"]
        if name in seen:
            refuse(f"tools[{index}].function.name", "invalid_value", f"'tools' has two functions named '{name}'")
        seen.add(name)
    return tools


def _tool(given: Any, here: str) -> tuple[dict[str, Any], int]:
    """The tool, and how many values and names its schema has."""
    if not isinstance(given, dict):
        wrong_type(here, "an object", given)
    if given.get("type", "function") != "function":
        refuse(
            f"{here}.type", "unsupported_parameter", f"'{here}.type' must be 'function': no other tools are built here"
        )
    inside, function = f"{here}.function", given.get("function")
    if not isinstance(function, dict):
        wrong_type(inside, "an object", function)
    name = function.get("name")
    if not isinstance(name, str) or not TOOL_NAME.fullmatch(name):
        what = f"'{inside}.name' must be 1 to 64 letters, digits, underscores and dashes"
        refuse(f"{inside}.name", "invalid_value", what)
    description, parameters, strict = (function.get(key) for key in ("description", "parameters", "strict"))
    if description is not None:
        _check_description(description, f"{inside}.description")
    nodes = 0 if parameters is None else _check_schema(parameters, f"{inside}.parameters")
    if strict is not None and type(strict) is not bool:
        wrong_type(f"{inside}.strict", "true or false", strict)
    # All four, in this order: templates write a tool as it is, and SGLang's server gives them these.
    whole = {"description": description, "name": name, "parameters": parameters, "strict": strict is True}
    return {"type": "function", "function": whole}, nodes


def _check_description(text: Any, here: str) -> None:
    if not isinstance(text, str):
        wrong_type(here, "a string", text)
    if len(text) > DESCRIPTION_CHARACTERS_MAX:
        what = f"'{here}' has {len(text)} characters; at most {DESCRIPTION_CHARACTERS_MAX} are allowed"
        refuse(here, "string_above_max_length", what)


def _check_schema(schema: Any, here: str) -> int:
    """How many values and names it has."""
    if not isinstance(schema, dict):
        wrong_type(here, "an object: a JSON schema", schema)
    if is_deeper(schema, SCHEMA_DEPTH_MAX):  # before it is encoded, which is recursive
        refuse(here, "schema_too_deep", f"'{here}' is nested more than {SCHEMA_DEPTH_MAX} deep; make it flatter")
    nodes = check_nodes(schema, here)  # of what xgrammar does not survive, too
    size_bytes = len(msgspec.json.encode(schema))
    if size_bytes > SCHEMA_BYTES_MAX:
        refuse(here, "schema_too_large", f"'{here}' has {size_bytes} bytes; at most {SCHEMA_BYTES_MAX} are allowed")
    return nodes
