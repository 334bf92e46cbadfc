"""`model.chat_template` and `model.chat_template_kwargs`: a file beside the YAML, or the text itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from disagg.errors import ConfigError
from disagg.load import load_config, parse_config, shipped_text

SAYS = "{% for m in messages %}{{ m.content }}\n{% endfor %}"
CONFIG = "version: 1\ndevice: simulated\nmodel: {path: smollm2, chat_template: %s}\nprefill: {}\ndecode: {}\n"


def written(folder: Path, said: str, name: str = "own.yaml") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "chat.jinja").write_text(SAYS)
    (folder / name).write_text(CONFIG % said)
    return folder / name


@pytest.mark.parametrize("said", ["chat.jinja", "./chat.jinja", yaml.safe_dump(SAYS, default_style='"').strip()])
def test_a_file_or_its_text(tmp_path: Path, said: str) -> None:
    assert load_config(written(tmp_path, said)).model.chat_template == SAYS


def test_a_path_counts_from_the_file_that_says_it(tmp_path: Path) -> None:
    below = written(tmp_path / "below", "chat.jinja")
    (tmp_path / "chat.jinja").write_text("{{ 'another' }}")
    above = tmp_path / "above.yaml"
    above.write_text(f"version: 1\nextends: {below}\n")
    assert load_config(above).model.chat_template == SAYS
    assert load_config(above, [f"model.chat_template={tmp_path}/below/chat.jinja"]).model.chat_template == SAYS


def test_to_another_machine_it_goes_as_text(tmp_path: Path) -> None:
    text, sets = shipped_text(written(tmp_path, "chat.jinja"))
    assert parse_config(text, sets).model.chat_template == SAYS


def test_variables_of_the_template_are_whatever_it_knows() -> None:
    said = parse_config(CONFIG % "null, chat_template_kwargs: {enable_thinking: false, x: [1]}").model
    assert said.chat_template_kwargs == {"enable_thinking": False, "x": [1]}


@pytest.mark.parametrize(
    ("said", "path", "what"),
    [
        ("missing.jinja", "model.chat_template", "cannot be read"),
        (".", "model.chat_template", "cannot be read"),
        ("not_utf8", "model.chat_template", "cannot be read"),
        ("own.yaml", "model.chat_template", "holds no chat template"),
        ('"{% if %}"', "model.chat_template", "no Jinja"),
        ("5", "model.chat_template", "must be"),
        ("null, chat_template_kwargs: {messages: []}", "model.chat_template_kwargs", "is what a request says"),
        ("null, chat_template_kwargs: [1]", "model.chat_template_kwargs", "must be"),
    ],
)
def test_what_is_none_is_refused_by_its_path(tmp_path: Path, said: str, path: str, what: str) -> None:
    (tmp_path / "not_utf8").write_bytes(b"{{ \xff }}")
    with pytest.raises(ConfigError) as caught:
        load_config(written(tmp_path, said))
    (problem,) = caught.value.problems
    assert problem.path == path
    assert what in problem.what
