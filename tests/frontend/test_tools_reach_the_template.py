"""Tools, calls, results, reasoning and an answer to go on with: prompts as transformers renders them, or a 400."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from chat_styles import (
    ANSWERED,
    ASKED,
    BARE,
    CALLED,
    DOCUMENTS,
    FUNCTION,
    PLAIN,
    QWEN,
    SPECIAL_TOKENS,
    STYLES,
    THOUGHT,
    TOOLS,
)
from scripted import make_model_folder

from disagg.cpu_profile.paths import standin_environment
from disagg.errors import BadRequest
from disagg.frontend.messages import messages_of
from disagg.tokenizer.codec import load_codec
from disagg.tokenizer.overrides import Overrides
from disagg.tokenizer.template import ChatTemplate

ASK = """
import json, sys
from transformers.utils.chat_template_utils import render_jinja_template
render = lambda source, chat, more: render_jinja_template([chat], chat_template=source, **more)[0][0]
rendered = [render(*asked) for asked in json.load(sys.stdin)]
print(json.dumps(rendered))
"""
SAID = [{"role": "user", "content": "Count."}, {"role": "assistant", "content": "One, two, "}]
PART = [{"role": "user", "content": "Count."}, {"role": "assistant", "content": [{"type": "text", "text": "One, "}]}]
NONE: Mapping[str, Any] = {}
GOES_ON = {"continue_final_message": True}
# what render gets: messages, tools, variables, and more
CASES: list[tuple[list[dict[str, Any]], dict[str, Any], dict[str, Any]]] = [
    (ASKED, {}, {}),
    (ASKED, {}, {"tools": TOOLS}),
    ([{"role": "system", "content": "Be brief."}, *ASKED], {}, {"tools": TOOLS}),
    (CALLED, {}, {"tools": TOOLS}),
    (ANSWERED, {}, {"tools": TOOLS}),
    (ANSWERED, {}, {}),
    (THOUGHT, {}, {"tools": TOOLS}),
    (ASKED, {"enable_thinking": False}, {}),
    (ASKED, {"enable_thinking": True}, {}),
    (ASKED, {}, {"add_generation_prompt": False}),
    (SAID, {}, GOES_ON),
    (THOUGHT, {}, {"tools": TOOLS, **GOES_ON}),
]


def rendered(source: str, messages: list[dict[str, Any]], variables: Mapping[str, Any] = NONE, **more: Any) -> str:
    return ChatTemplate(source, SPECIAL_TOKENS).render(messages_of(messages, 1000), variables, **more)


@pytest.mark.slow
def test_prompts_are_those_of_transformers() -> None:
    asked, ours = [], []
    cases = [(source, *case) for source in STYLES.values() for case in CASES]
    cases += [(DOCUMENTS, ASKED, {}, {"documents": [{"title": "a", "text": "b"}]})]
    for source, messages, variables, more in cases:
        theirs = {
            "tools": None,
            "documents": None,
            "add_generation_prompt": "continue_final_message" not in more,
            **more,
        }
        asked.append([source, messages_of(messages, 1000), {**SPECIAL_TOKENS, **variables, **theirs}])
        ours.append(rendered(source, messages, variables, **more))
    done = subprocess.run(
        [sys.executable, "-c", ASK],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        timeout=280,
        env=standin_environment(os.environ),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for (source, *case), our, their in zip(cases, ours, json.loads(done.stdout.splitlines()[-1]), strict=True):
        assert our == their, (source[:40], case)


def test_a_called_tool_and_its_result_as_qwen_shows_them() -> None:
    said = rendered(QWEN, ANSWERED, tools=TOOLS)
    assert json.dumps(TOOLS[0]) in said
    assert said.endswith(
        '<|im_start|>assistant\n\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "K\u00f6ln"}}\n'
        '</tool_call><|im_end|>\n<|im_start|>user\n<tool_response>\nIt is:\n"heavy" rain,\n7 \u00b0C\n'
        "</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("name", STYLES)
def test_each_style_shows_tools_calls_and_results(name: str) -> None:
    said = rendered(STYLES[name], ANSWERED, tools=TOOLS)
    assert said.count("get_weather") >= 2
    assert "heavy" in said


@pytest.mark.parametrize("name", STYLES)
def test_many_lines_of_a_tool_pass_however_a_template_writes_them(name: str) -> None:
    result = ANSWERED[-1] | {"content": "\n".join(f'line "{number}" of it' for number in range(200))}
    rendered(STYLES[name], [*CALLED, result], tools=TOOLS)


def test_functions_alone_go_to_a_template_that_shows_nothing_of_wrapped_ones() -> None:
    said = rendered(BARE, ASKED, tools=TOOLS)
    assert said.startswith(f"[get_weather: {json.dumps(FUNCTION['parameters'])}]<user>")


def test_functions_alone_go_to_a_template_that_refuses_wrapped_ones() -> None:
    refuses = (
        "{% for t in tools or [] %}{% if t.function %}{{ raise_exception('no') }}{% endif %}{{ t.name }}{% endfor %}"
    )
    only_now = "{% if on %}" + refuses + "{% endif %}" + PLAIN  # the trial at the start saw none
    assert rendered(refuses + PLAIN, ASKED, tools=TOOLS).startswith("get_weather<user>")
    assert rendered(only_now, ASKED, {"on": True}, tools=TOOLS).startswith("get_weather<user>")


@pytest.mark.parametrize(
    ("more", "param"),
    [({"tools": TOOLS}, "tools"), ({"documents": [{"title": "a", "text": "b"}]}, "documents")],
)
def test_what_the_template_does_not_show_is_refused(more: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest, match="shows n") as refused:
        rendered(PLAIN, ASKED, **more)
    assert (refused.value.param, refused.value.code) == (param, "unsupported_parameter")


@pytest.mark.parametrize(
    ("source", "lost"),
    [
        (PLAIN, "messages[1].tool_calls"),
        ("{% for m in messages if m.role != 'tool' %}{{ m.content }}{{ m.tool_calls }}{% endfor %}", "messages[2]"),
    ],
)
def test_a_call_or_a_result_that_is_left_out_is_the_clients_400(source: str, lost: str) -> None:
    with pytest.raises(BadRequest, match="leaves out") as refused:
        rendered(source, ANSWERED)
    assert refused.value.param == lost


def test_the_reason_of_a_template_is_that_of_the_tools_as_they_were_sent() -> None:
    with pytest.raises(BadRequest, match="one tool call at once"):
        rendered(STYLES["llama"], [*ASKED, CALLED[-1] | {"tool_calls": CALLED[-1]["tool_calls"] * 2}], tools=TOOLS)


def test_a_result_in_parts_is_one_text() -> None:
    parts = [{"type": "text", "text": "rain,"}, {"type": "text", "text": "7 degrees"}]
    assert "\nrain, 7 degrees\n" in rendered(QWEN, [*CALLED, ANSWERED[-1] | {"content": parts}], tools=TOOLS)


def test_an_answer_goes_on_where_its_text_ends() -> None:
    assert rendered(QWEN, SAID, **GOES_ON).endswith("<|im_start|>assistant\nOne, two, ")
    assert rendered(PLAIN, PART, **GOES_ON) == "<user>Count.<assistant>One, "
    trimmed = PLAIN.replace("m.content", "m.content | trim")
    assert rendered(trimmed, SAID, **GOES_ON) == "<user>Count.<assistant>One, two,"


@pytest.mark.parametrize(
    ("source", "messages"),
    [
        (PLAIN, ASKED),
        (PLAIN, ANSWERED),
        ("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}", SAID),
        (PLAIN.replace("m.content", "m.content | upper"), [SAID[1]]),
        (PLAIN.replace("m.content", "m.content[:9]"), [SAID[1]]),
    ],
)
def test_an_answer_that_cannot_go_on_is_refused(source: str, messages: list[dict[str, Any]]) -> None:
    with pytest.raises(BadRequest) as refused:
        rendered(source, messages, **GOES_ON)
    assert refused.value.param in ("continue_final_message", "messages[1].tool_calls")


NAMED = [{"name": "default", "template": PLAIN}, {"name": "tool_use", "template": "TOOLS" + QWEN}]


@pytest.mark.parametrize("as_files", [False, True])
def test_the_template_for_tools_is_taken_where_there_are_some(tmp_path: Path, as_files: bool) -> None:
    folder = make_model_folder(tmp_path)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": None if as_files else NAMED}))
    if as_files:
        (folder / "chat_template.jinja").write_text(NAMED[0]["template"])
        (folder / "additional_chat_templates").mkdir()
        (folder / "additional_chat_templates" / "tool_use.jinja").write_text(NAMED[1]["template"])
    codec = load_codec(folder)
    assert codec.text_of(codec.chat_ids(ASKED, {}), skip_special_tokens=False).startswith("<user>")
    with_tools = codec.chat_ids(ASKED, {}, tools=TOOLS)
    assert codec.text_of(with_tools, skip_special_tokens=False).startswith("TOOLS<|im_start|>system\n# Tools")
    over = load_codec(folder, Overrides(chat_template=QWEN, chat_template_kwargs={"enable_thinking": False}))
    said = over.text_of(over.chat_ids(ASKED, {}, tools=TOOLS), skip_special_tokens=False)
    assert said.startswith("<|im_start|>system\n# Tools")
    assert said.endswith("<think>\n\n</think>\n\n")
    stronger = over.text_of(over.chat_ids(ASKED, {"enable_thinking": True}), skip_special_tokens=False)
    assert stronger.endswith("<|im_start|>assistant\n")
