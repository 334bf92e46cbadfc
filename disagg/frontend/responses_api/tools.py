"""Tools of Responses as a chat's: functions alone. What OpenAI's servers would run is refused by name.

Way:   `tools`, `tool_choice` -> [tools_of] -> the same of a chat body, and what the answer repeats
Fails: BadRequest, naming the tool
"""

from __future__ import annotations

from typing import Any

from disagg.fields import Body, refuse, typed
from disagg.frontend.api_fields import flag, objects, text_at

_MODES = ("auto", "none", "required")


def tools_of(body: Body) -> tuple[Body, dict[str, Any]]:
    """(fields of the chat body, fields of the answer)."""
    functions = [_function(tool, f"tools[{index}]") for index, tool in enumerate(objects(body, "tools"))]
    choice = body.get("tool_choice", "auto")
    echo = {"tools": [{"type": "function", **each} for each in functions], "tool_choice": choice}
    names, chat_choice = _choice(choice, [each["name"] for each in functions])
    tools = [{"type": "function", "function": _without_nulls(each)} for each in functions if each["name"] in names]
    if not tools:
        return {}, echo
    return {"tools": tools, "tool_choice": chat_choice}, echo


def _function(tool: dict[str, Any], here: str) -> dict[str, Any]:
    kind = text_at(tool, "type", here)
    if kind != "function":
        what = f"'{here}.type' is '{kind[:100]}': this deployment runs no tools itself; take it out, or send a tool of "
        refuse(f"{here}.type", "unsupported_parameter", f"{what}type 'function', which the client runs")
    description = tool.get("description")
    if description is not None:
        typed(str, description, f"{here}.description")
    parameters = typed(dict, tool.get("parameters") or {}, f"{here}.parameters") or None
    strict = flag(tool, "strict", here)
    return {"name": text_at(tool, "name", here), "description": description, "parameters": parameters, "strict": strict}


def _without_nulls(function: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in function.items() if value is not None and value is not False}


def _choice(choice: Any, names: list[str]) -> tuple[list[str], Any]:
    """The names of the tools that may be called, and chat's choice among them."""
    here = "tool_choice"
    if isinstance(choice, str):
        return names, _mode(choice, here, names)
    kind = text_at(typed(dict, choice, here), "type", here)
    if kind == "function":
        name = _known(text_at(choice, "name", here), f"{here}.name", names)
        return names, {"type": "function", "function": {"name": name}}
    if kind == "allowed_tools":
        given = objects({f"{here}.tools": choice.get("tools", [])}, f"{here}.tools")
        allowed = [
            _known(text_at(each, "name", f"{here}.tools[{index}]"), f"{here}.tools[{index}].name", names)
            for index, each in enumerate(given)
        ]
        return allowed, _mode(text_at(choice, "mode", here), f"{here}.mode", allowed)
    what = f"'{here}.type' is '{kind[:100]}': only a tool of type 'function' can be chosen here"
    refuse(f"{here}.type", "unsupported_parameter", what)


def _mode(mode: str, here: str, names: list[str]) -> str:
    if mode not in _MODES:
        refuse(here, "invalid_value", f"'{here}' is '{mode[:100]}'; it may be {', '.join(_MODES)}")
    if mode == "required" and not names:
        refuse(here, "invalid_value", f"'{here}' is 'required', and there are no 'tools' to call")
    return mode


def _known(name: str, here: str, names: list[str]) -> str:
    if name not in names:
        refuse(here, "invalid_value", f"'{here}' is '{name[:100]}', which is none of 'tools'")
    return name
