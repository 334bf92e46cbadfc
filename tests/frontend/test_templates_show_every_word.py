"""A chat template gets contents in the form that it takes; what goes in comes out, or the client gets a 400."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from scripted import TEMPLATE, make_model_folder

from disagg.errors import BadRequest, StartError
from disagg.models.text_files import LFS_START
from disagg.tokenizer.codec import load_codec
from disagg.tokenizer.template import ChatTemplate
from disagg.tokenizer.template_files import load_template

EACH = "{% for message in messages %}<{{ message.role }}>"
END = "{% endfor %}"
PARTS = "{% for part in message.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}"
EITHER = "{% if message.content is string %}{{ message.content }}{% else %}" + PARTS + "{% endif %}"
TEXT = "{{ message['content'] }}"
TRIMMED = "{{ message.content | trim }}"


def chat(*turns: tuple[str, Any]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in turns]


def parts(*texts: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text} for text in texts]


CHAT = chat(("system", "Be brief."), ("user", "Who are you?"), ("assistant", "Nobody."), ("user", "Really?"))
SHOWN = "<system>Be brief.<user>Who are you?<assistant>Nobody.<user>Really?"


@pytest.mark.parametrize("source", [PARTS, EITHER, TEXT, TRIMMED, "{{ message.content | upper | lower | title }}"])
def test_a_text_reaches_the_prompt_whichever_form_the_template_takes(source: str) -> None:
    template = ChatTemplate(EACH + source + END, {})
    if "title" in source:  # it writes every word otherwise than the client did
        with pytest.raises(BadRequest, match=r"messages\[0\].* leaves out"):
            template.render(CHAT, {})
    else:
        assert template.render(CHAT, {}) == SHOWN


@pytest.mark.parametrize(("source", "joined"), [(PARTS, "a\nb"), (EITHER, "a\nb"), (TEXT, "a\n b"), (TRIMMED, "a\n b")])
def test_parts_reach_the_prompt_whichever_form_the_template_takes(source: str, joined: str) -> None:
    template = ChatTemplate(EACH + source + END, {})
    assert template.render(chat(("user", parts("a\n", "b"))), {}) == "<user>" + joined


def test_each_role_may_take_another_form() -> None:
    source = EACH + "{% if message.role == 'system' %}" + TEXT + "{% else %}" + PARTS + "{% endif %}" + END
    assert ChatTemplate(source, {}).render(CHAT, {}) == SHOWN


def test_a_text_with_no_branch_of_its_own_in_a_template_for_media() -> None:
    media = "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>{% endif %}"
    source = EACH + media + "{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}" + END
    assert ChatTemplate(source, {}).render(CHAT, {}) == SHOWN


def test_words_that_speak_of_media_do_not_make_a_text_a_list() -> None:
    source = "You see no image." + EACH + TEXT + END  # SGLang would print the list here
    assert ChatTemplate(source, {}).render(chat(("user", parts("a", "b"))), {}) == "You see no image.<user>a b"


@pytest.mark.parametrize(
    ("source", "messages", "lost"),
    [
        ("{{ messages[-1].content }}", chat(("user", "one"), ("assistant", "two"), ("user", "three")), 0),
        ("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}", CHAT, 0),
        ("{% for m in messages if m.role != 'assistant' %}{{ m.content }}{% endfor %}", CHAT, 2),
        (EACH + "{{ message.content[:5] }}" + END, chat(("user", "a long question of many words")), 0),
        (EACH + "{{ message.content[0].text }}" + END, chat(("user", parts("first", "second"))), 0),
        ("always the same", CHAT, 0),
    ],
)
def test_what_does_not_come_out_is_the_clients_400(source: str, messages: list[dict[str, Any]], lost: int) -> None:
    with pytest.raises(BadRequest) as refused:
        ChatTemplate(source, {}).render(messages, {})
    assert (refused.value.param, refused.value.code) == (f"messages[{lost}]", "invalid_messages")


@pytest.mark.parametrize(
    ("source", "content"),
    [
        (TRIMMED, "  spaces around \n"),
        ("{{ message.content | replace('\n', ' ') }}", "two\nlines"),
        ("{{ message.content | replace('/no_think', '') }}", "Be quick. /no_think"),
        ("{{ message.content | tojson }}", 'a "quoted" word\nand caf\u00e9'),
        ("{{ message.content | escape }}", "a <b> & 'c'"),
        (TEXT, ""),
        (TEXT, " \n "),
        ("{{ message.content.split('</think>')[-1] }}", "no such mark"),
    ],
)
def test_a_text_that_a_template_writes_in_its_own_way_passes(source: str, content: str) -> None:
    ChatTemplate(EACH + source + END, {}).render(chat(("user", content)), {})


def test_an_assistants_reasoning_may_be_left_out() -> None:
    source = EACH + "{{ message.content.split('</think>')[-1] }}" + END
    said = chat(("user", "Hi"), ("assistant", "<think>hm</think>Hello"), ("user", "Bye"))
    assert ChatTemplate(source, {}).render(said, {}) == "<user>Hi<assistant>Hello<user>Bye"


@pytest.mark.parametrize(("source", "role"), [(TEXT, "system"), (TEXT + "{# developer #}", "developer")])
def test_developer_is_system_to_a_template_that_does_not_know_it(source: str, role: str) -> None:
    rendered = ChatTemplate(EACH + source + END, {}).render(chat(("developer", "Be brief."), ("user", "Hi")), {})
    assert rendered == f"<{role}>Be brief.<user>Hi"


def test_a_role_that_is_never_shown_is_told_at_start(caplog: pytest.LogCaptureFixture) -> None:
    ChatTemplate("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}", {}, "file.jinja")
    assert "file.jinja: it shows nothing of what these say: assistant, system" in caplog.text
    caplog.clear()
    ChatTemplate("{{ raise_exception('no') }}", {})
    ChatTemplate(TEMPLATE, {})
    assert not caplog.text


# test_prompts_equal_sglang.py asks SGLang which form these take
SOURCES = [
    *[EACH + source + END for source in (PARTS, EITHER, TEXT, TRIMMED)],
    "{% for msg in messages %}{% for c in msg['content'] %}{{ c }}{% endfor %}{% endfor %}",
    "{% for m in messages %}{% for c in m.content | list %}{{ c }}{% endfor %}{% endfor %}",
    "{% for m in messages %}{% for c in m.content[1:] %}{{ c }}{% endfor %}{% endfor %}",
    "{% for m in messages %}{% for c in m.content is string %}{{ c }}{% endfor %}{% endfor %}",
    "{% for turn in messages %}{% for c in turn.content %}{{ c }}{% endfor %}{% endfor %}",
    "{% set content = messages[0].content %}{% for c in content %}{{ c }}{% endfor %}",
    "{% for m in messages[0].content %}{{ m }}{% endfor %}",
    "an image",
    "{% for",
    "",
]


# Files of a model's folder -> what the template says
PLACES: list[tuple[dict[str, Any], str | None]] = [
    ({}, None),
    ({"tokenizer_config.json": {"chat_template": "config"}}, "config"),
    ({"tokenizer_config.json": {"chat_template": None}}, None),
    ({"tokenizer_config.json": {"chat_template": [{"name": "tool_use", "template": "tools"}]}}, "tools"),
    (
        {
            "tokenizer_config.json": {
                "chat_template": [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
            }
        },
        "plain",
    ),
    ({"tokenizer_config.json": {"chat_template": {"rag": "rag", "default": "plain"}}}, "plain"),
    ({"tokenizer_config.json": {"chat_template": "config"}, "chat_template.jinja": "file"}, "file"),
    ({"tokenizer_config.json": {"chat_template": "config"}, "chat_template.json": {"chat_template": "old"}}, "config"),
    ({"chat_template.json": {"chat_template": "old"}}, "old"),
    ({"chat_template.json": {"chat_template": [{"name": "default", "template": "old"}]}}, "old"),
    ({"additional_chat_templates/tool_use.jinja": "tools"}, "tools"),
    ({"additional_chat_templates/tool_use.jinja": "tools", "chat_template.jinja": "file"}, "file"),
    ({"additional_chat_templates/tool_use.jinja": "t", "tokenizer_config.json": {"chat_template": "config"}}, "t"),
]


def write(folder: Path, files: dict[str, Any]) -> dict[str, Any]:
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        text = content if name.endswith("jinja") else json.dumps(content)
        (folder / name).write_text(text)
    return files.get("tokenizer_config.json", {})


@pytest.mark.parametrize(("files", "said"), PLACES, ids=lambda value: str(value)[:60])
def test_templates_are_found_where_transformers_and_sglang_find_them(
    tmp_path: Path, files: dict[str, Any], said: str | None
) -> None:
    template = load_template(tmp_path, write(tmp_path, files))
    assert (template and template.render([], {})) == said


POINTER = LFS_START + b"v1\noid sha256:0\nsize 9000000\n"


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("chat_template.jinja", b"{% if %}", "line 1, is no Jinja"),
        ("chat_template.jinja", b"\xff", "not UTF-8"),
        ("chat_template.jinja", POINTER, "pointer of git-lfs"),
        ("chat_template.json", b"{", "not JSON"),
        ("tokenizer_config.json", b"[]", "not an object"),
        ("tokenizer_config.json", b'{"chat_template": 5}', "a template is int"),
        ("tokenizer_config.json", b'{"chat_template": [{"name": "default"}]}', "template"),
        ("tokenizer_config.json", POINTER, "pointer of git-lfs"),
        ("special_tokens_map.json", b"{", "not JSON"),
        ("tokenizer.json", POINTER, "pointer of git-lfs"),
        ("tokenizer.json", b"{}", "no tokenizer"),
        ("tokenizer.json", b"{", "no tokenizer"),
        ("config.json", POINTER, "pointer of git-lfs"),
        ("generation_config.json", b"{", "not JSON"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: bytes, what: str) -> None:
    make_model_folder(tmp_path)
    if name.startswith("chat_template"):
        (tmp_path / "tokenizer_config.json").write_text("{}")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(StartError, match=what) as refused:
        load_codec(tmp_path)
    assert refused.value.where == str(tmp_path / name)


def test_special_tokens_are_those_that_transformers_gives(tmp_path: Path) -> None:
    source = "{{ bos_token }}|{{ eos_token }}|{{ image_token }}|{{ pad_token is defined }}"
    config: dict[str, Any] = {"chat_template": source, "bos_token": {"content": "<s>"}, "eos_token": "</s>"}
    config |= {"image_token": "<i>", "pad_token": None}
    files: dict[str, Any] = {"special_tokens_map.json": {"eos_token": {"content": "<end>"}}}
    template = load_template(tmp_path, write(tmp_path, files | {"tokenizer_config.json": config}))
    assert template is not None
    assert template.render([], {}) == "<s>|<end>|<i>|False"
    config["added_tokens_decoder"] = {}  # newer than special_tokens_map.json, which is not read then
    template = load_template(tmp_path, write(tmp_path, {"tokenizer_config.json": config}))
    assert template is not None
    assert template.render([], {}) == "<s>|</s>|<i>|False"
