"""What a client gives the template in chat_template_kwargs: no type and no depth of it is our internal error."""

from __future__ import annotations

from typing import Any

import pytest

from disagg.errors import BadRequest
from disagg.frontend.template_variables import template_variables
from disagg.tokenizer.template import ChatTemplate

HI = [{"role": "user", "content": "hi"}]
SHOWN = "{% for message in messages %}{{ message.content }}{% endfor %}"


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("template", "value"),
    [
        ("{{ x | tojson }}", nested(5000)),
        ("{% macro each(v) %}{% for e in v %}{{ each(e) }}{% endfor %}{% endmacro %}{{ each(x) }}", nested(500)),
        ("{{ 'a' * x }}", 2**60),
        ("{% for i in range(x) %}{{ i }}{% endfor %}", 10**9),
        ("{{ 2 / x }}", 0),
        ("{{ x.upper() }}", None),
        ("{{ x['a']['b'] }}", {}),
        ("{{ x() }}", "text"),
        ("{{ 1 + x }}", "text"),
    ],
)
def test_a_value_that_the_template_cannot_take_is_the_clients_error(template: str, value: Any) -> None:
    with pytest.raises(BadRequest, match="the model's chat template refuses them"):
        ChatTemplate(SHOWN + template, {}).render(HI, {"x": value})


@pytest.mark.parametrize("value", [None, True, 0, 1.5, "", "false", [], {}, nested(50), {"a": None}])
def test_a_value_that_it_does_not_ask_for_changes_nothing(value: Any) -> None:
    template = ChatTemplate(SHOWN, {})
    assert template.render(HI, {"x": value, "self": value, "loop": value, "": value, "range": value}) == "hi"


@pytest.mark.parametrize("name", ["raise_exception", "strftime_now", "bos_token"])
def test_a_name_of_ours_in_their_place_is_at_worst_their_error(name: str) -> None:
    template = ChatTemplate(SHOWN + "{% if x %}{{ " + name + "('%Y') }}{% endif %}", {"bos_token": "<s>"})
    assert template.render(HI, {name: 1}) == "hi"
    with pytest.raises(BadRequest):
        template.render(HI, {name: 1, "x": True})


ON, OFF = ({"thinking": on, "enable_thinking": on} for on in (True, False))


@pytest.mark.parametrize(
    ("body", "variables"),
    [
        ({}, {}),
        ({"reasoning_effort": "low"}, {"reasoning_effort": "low", **ON}),
        ({"reasoning_effort": "none"}, {"reasoning_effort": "none", **OFF}),
        ({"reasoning_effort": 0}, {"reasoning_effort": 0.0, **ON}),
        ({"reasoning": {"effort": "high", "enabled": None}}, {"reasoning_effort": "high", **ON}),
        ({"reasoning": {"effort": "none"}, "reasoning_effort": "high"}, {"reasoning_effort": "none", **OFF}),
        ({"reasoning": {"enabled": True}}, ON),
        ({"reasoning": {"enabled": False}}, OFF),
        ({"reasoning": {}}, {}),
        (
            {"reasoning_effort": "low", "chat_template_kwargs": {"thinking": False}},
            {"reasoning_effort": "low"} | ON | {"thinking": False},
        ),
    ],
)
def test_effort_and_switches_are_variables_and_the_clients_own_are_stronger(
    body: dict[str, Any], variables: dict[str, Any]
) -> None:
    assert template_variables(body) == variables
