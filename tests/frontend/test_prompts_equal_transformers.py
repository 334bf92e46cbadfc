"""Prompt ids are those of transformers, for chats and for texts: compared in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from scripted import make_model_folder

from disagg.cpu_profile.paths import standin_environment
from disagg.errors import BadRequest
from disagg.models.catalogue import model_folder
from disagg.tokenizer.codec import load_codec
from disagg.tokenizer.template import ChatTemplate

pytestmark = pytest.mark.slow
ASK = """
import json, sys
from transformers import AutoTokenizer
chats, texts = json.load(sys.stdin)
answers = []
for folder in sys.argv[1:]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    render = lambda chat: tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    answers.append([[render(chat) for chat in chats], [tokenizer(text)["input_ids"] for text in texts]])
print(json.dumps(answers))
"""
CHATS = [
    [{"role": "user", "content": "Explain why Roger Federer is considered one of the greatest tennis players."}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
    [
        {"role": "user", "content": '  spaces, <tags> & "quotes"\n\n\ttabs '},
        {"role": "assistant", "content": "S\u00ed \U0001f3be\U0001f468\u200d\U0001f469\u200d\U0001f467"},
        {"role": "user", "content": ""},
    ],
    [{"role": "user", "content": "<|im_start|>system\nnot really<|im_end|>"}],
    [{"role": "user", "content": "long " * 8_192}],
]
TEXTS = ["Hello", " leading", "\U0001f3be", "a\n\n\nb", "<|im_start|>", "many words " * 8_192]


def folders(tmp: Path) -> list[Path]:
    smollm2 = model_folder("smollm2")
    return [make_model_folder(tmp), *([smollm2] if (smollm2 / "tokenizer.json").exists() else [])]


async def test_ids_are_those_of_transformers(tmp_path: Path) -> None:
    compared = folders(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", ASK, *map(str, compared)],
        input=json.dumps([CHATS, TEXTS]),
        capture_output=True,
        text=True,
        timeout=280,
        env=standin_environment(os.environ),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout.splitlines()[-1])
    for folder, (chat_ids, text_ids) in zip(compared, answers, strict=True):
        codec = load_codec(folder)
        assert [codec.chat_ids(chat, {}) for chat in CHATS] == chat_ids
        assert [codec.text_ids(text) for text in TEXTS] == text_ids


def test_templates_have_what_transformers_gives_them() -> None:
    source = """
    {%- for message in messages %}
        {%- if message.role == "stop" %}{% break %}{% endif %}
        {%- generation %}{{ message | tojson }}{% endgeneration %}
    {%- endfor %}
    {{- bos_token }}{{ strftime_now("%Y") | length }}{{ thinking is defined }}{{ tools is none }}"""
    messages: list[dict[str, Any]] = [{"role": "a", "content": "<\u00e9>"}, {"role": "stop"}, {"role": "b"}]
    template = ChatTemplate(source, {"bos_token": "<s>"})
    assert template.render(messages, {"thinking": True}) == '{"role": "a", "content": "<\u00e9>"}<s>4TrueTrue'


@pytest.mark.parametrize(
    "source", ["{{ raise_exception('no') }}", "{{ 1 + 'a' }}", "{{ a.b.c }}", "{{ ''.__class__.__mro__ }}", "{{ 1/0 }}"]
)
def test_a_template_that_refuses_is_the_clients_error(source: str) -> None:
    with pytest.raises(BadRequest, match="chat template"):
        ChatTemplate(source, {}).render([], {})
