"""A body of /v1/messages, or of its count_tokens, as a body of /v1/chat/completions.

Way:   JSON body -> [chat_body] -> the same reading, template and generation as a chat's
In:    a decoded body; nothing in it is trusted
Out:   a chat body; what Anthropic's clients send for Anthropic's own servers is left out by a table
Fails: BadRequest, naming the field

`thinking` becomes `reasoning: {"enabled": …}` and `output_config.effort` its `effort`: SGLang's switch of a chat.
"""

from __future__ import annotations

from typing import Any

from disagg.errors import BadRequest
from disagg.fields import Body, boolean, integer, refuse, required, strings, typed
from disagg.frontend.api_fields import flag, not_empty, objects, passed_on, schema_format, text_at, without_nulls
from disagg.frontend.messages_api.blocks import chat_messages, texts_of
from disagg.frontend.renaming import renamed
from disagg.frontend.request_body import STOP_CHARACTERS_MAX, STOP_STRINGS_MAX
from disagg.sampling import INT32_MAX

OWN = frozenset(
    {"model", "messages", "system", "max_tokens", "stop_sequences", "stream", "temperature", "top_p", "top_k"}
)
OWN |= {"thinking", "output_config", "output_format", "tools", "tool_choice", "metadata"}
OWN |= {"container", "mcp_servers", "stop", "reasoning", "user"}
# Labels, and hints to Anthropic's caches and tiers: they ask for nothing that an answer would show.
HARMLESS = frozenset({"betas", "cache_control", "context_management", "diagnostics", "inference_geo", "service_tier"})
HARMLESS |= {"speed", "user_profile_id", "workspace_id"}
# What a chat's refusals call otherwise.
NAMES = {
    "messages": "messages",
    "stop": "stop_sequences",
    "response_format": "output_config.format",
    "reasoning": "thinking",
    "user": "metadata.user_id",
    "parallel_tool_calls": "tool_choice.disable_parallel_tool_use",
    "continue_final_message": "messages",
}
BUDGET_LEAST = 1024  # Anthropic's
_PASSED = ("temperature", "top_p", "top_k")
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
_EFFORTS = ("minimal", "low", "medium", "high", "xhigh", "max")


def chat_body(body: Body, *, counts: bool = False) -> Body:
    """`counts`: for count_tokens, which needs no max_tokens."""
    body = without_nulls(body)
    chat = passed_on(body, OWN, HARMLESS)
    _refuse_servers(body)
    system = texts_of(body.get("system", []), "system")
    chat["model"] = required(body, "model")
    chat["messages"] = chat_messages(system, not_empty(body, "messages"))
    last = chat["messages"][-1]
    if last["role"] == "assistant" and last.get("content") and "tool_calls" not in last:
        chat["continue_final_message"] = True  # Anthropic's rule: the answer goes on with the last message
    max_tokens = integer(body, "max_tokens", 1, INT32_MAX)
    if max_tokens is None and not counts:
        required(body, "max_tokens")
    if max_tokens is not None:
        chat["max_tokens"] = max_tokens
    if boolean(body, "stream"):
        chat["stream"] = True
    if stop := strings(body, "stop_sequences", STOP_STRINGS_MAX, STOP_CHARACTERS_MAX):
        chat["stop"] = list(stop)
    chat |= {name: body[name] for name in _PASSED if name in body}
    if user := typed(dict, body.get("metadata", {}), "metadata").get("user_id"):
        chat["user"] = typed(str, user, "metadata.user_id")
    return {**chat, **_reasoning_and_format(body), **_tools(body)}


def own_words(error: BadRequest) -> BadRequest:
    """A refusal of the chat body, in the names that the client sent."""
    return renamed(error, NAMES)


def _refuse_servers(body: Body) -> None:
    for name in ("container", "mcp_servers"):
        if body.get(name):
            what = f"'{name}' asks for what Anthropic's servers run; this deployment runs a model alone; leave it out"
            refuse(name, "unsupported_parameter", what)
    for name in ("stop", "reasoning", "user"):
        if name in body:
            refuse(name, "unknown_parameter", f"'{name}' is not a parameter of this endpoint; it has '{NAMES[name]}'")


def _reasoning_and_format(body: Body) -> Body:
    reasoning: Body = {}
    if (thinking := body.get("thinking")) is not None:
        reasoning["enabled"] = _thinks(typed(dict, thinking, "thinking"))
    config = typed(dict, body.get("output_config", {}), "output_config")
    if (effort := config.get("effort")) is not None:
        if effort not in _EFFORTS:
            here = "output_config.effort"
            refuse(here, "invalid_value", f"'{here}' must be one of {', '.join(_EFFORTS)}")
        reasoning["effort"] = effort
    found: Body = {"reasoning": reasoning} if reasoning else {}
    for here, given in (("output_config.format", config.get("format")), ("output_format", body.get("output_format"))):
        if given is None:
            continue
        if typed(dict, given, here).get("type") != "json_schema":
            refuse(f"{here}.type", "unsupported_parameter", f"'{here}.type' must be 'json_schema'")
        found["response_format"] = schema_format(given.get("schema"), f"{here}.schema", "output", strict=True)
    return found


def _thinks(thinking: Body) -> bool:
    """A budget is checked, and binds nothing: `max_tokens` alone ends an answer."""
    kind = thinking.get("type")
    if kind not in ("enabled", "disabled", "adaptive"):
        refuse("thinking.type", "invalid_value", "'thinking.type' must be 'enabled', 'disabled' or 'adaptive'")
    if kind == "enabled":
        here = "thinking.budget_tokens"
        integer({here: thinking.get("budget_tokens")}, here, BUDGET_LEAST, INT32_MAX)
    return bool(kind != "disabled")


def _tools(body: Body) -> Body:
    tools = [_tool(each, f"tools[{index}]") for index, each in enumerate(objects(body, "tools"))]
    choice = typed(dict, body.get("tool_choice", {}), "tool_choice")
    kind = choice.get("type", "auto")
    if kind not in (*_CHOICES, "tool"):
        refuse("tool_choice.type", "invalid_value", "'tool_choice.type' must be 'auto', 'any', 'tool' or 'none'")
    if not tools:
        if kind in ("any", "tool"):
            refuse("tool_choice", "invalid_value", f"'tool_choice' is '{kind}', and there are no 'tools' to call")
        return {}
    found: Body = {"tools": tools, "tool_choice": _CHOICES.get(kind)}
    if kind == "tool":
        name = text_at(choice, "name", "tool_choice")
        if name not in [tool["function"]["name"] for tool in tools]:
            refuse(
                "tool_choice.name", "invalid_value", f"'tool_choice.name' is '{name[:100]}', which is none of 'tools'"
            )
        found["tool_choice"] = {"type": "function", "function": {"name": name}}
    if flag(choice, "disable_parallel_tool_use", "tool_choice"):
        found["parallel_tool_calls"] = False
    return found


def _tool(tool: dict[str, Any], here: str) -> dict[str, Any]:
    kind = tool.get("type")
    if kind not in (None, "custom"):
        what = f"'{here}.type' is '{str(kind)[:100]}', a tool that Anthropic's servers run; only tools with an "
        refuse(f"{here}.type", "unsupported_parameter", f"{what}'input_schema', which the client runs, are taken here")
    schema = typed(dict, tool.get("input_schema"), f"{here}.input_schema")
    function: dict[str, Any] = {"name": text_at(tool, "name", here), "parameters": {"type": "object", **schema}}
    if (description := tool.get("description")) is not None:
        function["description"] = typed(str, description, f"{here}.description")
    if tool.get("strict") is not None:
        function["strict"] = flag(tool, "strict", here)
    return {"type": "function", "function": function}
