"""What a request tells the chat template beside its messages: chat_template_kwargs, and how much to think.

Way:   body -> reading.py -> [template_variables] -> chat template
Out:   the template's variables. `thinking` and `enable_thinking` are the names that templates have for one switch, and
       both are set; a client's own chat_template_kwargs are stronger, and the deployment's are weaker
Fails: BadRequest, naming the parameter

A template that knows no effort, or no switch, renders as it would without: both are hints.
"""

from __future__ import annotations

from typing import Any

from disagg.fields import Body, refuse, typed, wrong_type

TEMPLATE_NAMES = frozenset({"messages", "tools", "documents", "add_generation_prompt"})  # ours to give
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
EFFORT_MOST = 0.99  # of an effort that is a number, which starts at 0: SGLang's addition
# Fields of `reasoning`, which SGLang has from OpenRouter; two of them have another name each.
REASONING_FIELDS = {"effort": "effort", "reasoning_effort": "effort", "enabled": "enabled", "enable": "enabled"}


def template_variables(body: Body) -> dict[str, Any]:
    said: dict[str, Any] = {}
    if "chat_template_kwargs" in body:
        said = typed(dict, body["chat_template_kwargs"], "chat_template_kwargs")
        if taken := sorted(TEMPLATE_NAMES & said.keys()):
            here = f"chat_template_kwargs.{taken[0]}"
            refuse(here, "invalid_value", f"'{here}' would overrule what this frontend gives the template")
    if "reasoning_effort" in body or "reasoning" in body:
        return {**_thinking(body), **said}
    return said


def _thinking(body: Body) -> dict[str, Any]:
    asked: dict[str, Any] = {}
    for name, value in typed(dict, body.get("reasoning", {}), "reasoning").items():
        here = f"reasoning.{name[:100]}"
        if value is None:
            continue
        if name not in REASONING_FIELDS:
            refuse(here, "unsupported_parameter", f"'{here}' is not supported here; leave it out")
        asked[REASONING_FIELDS[name]] = value
    effort, here = asked.get("effort"), "reasoning.effort"
    if effort is None:
        effort, here = body.get("reasoning_effort"), "reasoning_effort"
    enabled = asked.get("enabled")
    if enabled is not None and type(enabled) is not bool:
        wrong_type("reasoning.enabled", "true or false", enabled)
    if effort is not None:
        return {"reasoning_effort": _effort(effort, here), **_switch(effort != "none")}
    return {} if enabled is None else _switch(enabled)


def _effort(value: Any, here: str) -> str | float:
    if type(value) in (int, float):
        if not 0 <= value <= EFFORT_MOST:
            refuse(here, "invalid_value", f"'{here}' is {value}; as a number it must be from 0 to {EFFORT_MOST:g}")
        return float(value)
    if not isinstance(value, str):
        wrong_type(here, "a string or a number", value)
    if value not in EFFORTS:
        refuse(here, "invalid_value", f"'{here}' is '{value[:100]}'; it must be one of {', '.join(EFFORTS)}")
    return value


def _switch(on: bool) -> dict[str, bool]:
    return {"thinking": on, "enable_thinking": on}
