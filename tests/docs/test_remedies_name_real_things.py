"""What a message advises is there: each command, option, key of the YAML, variable and package that it names."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from spoken import (
    ROOT,
    VARIABLE,
    YAML_PATH,
    commands,
    options,
    refuse_unknown_packages,
    refuse_unknown_path,
    refuse_unknown_variables,
    refuse_unknown_words,
)

FILES = [
    file for package in ("disagg", "prefill", "decode", "transfer") for file in sorted((ROOT / package).rglob("*.py"))
]
OTHERS_OPTIONS = {
    "--help": "of all programs",
    "--ulimit": "of `docker run`",
    "--shm-size": "of `docker run`",
}


def messages(file: Path) -> Iterator[str]:
    """Texts of several words, but for docstrings; what is filled in is a ▢."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    skipped: set[int] = set()
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            for statement in body:  # docstrings, of fields too
                if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                    skipped.add(id(statement.value))
        if isinstance(node, ast.JoinedStr):
            skipped |= {id(value) for value in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(v.value) if isinstance(v, ast.Constant) else "▢" for v in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped:
            yield node.value


def all_messages() -> list[str]:
    return [text for file in FILES for text in messages(file) if " " in text]


@pytest.fixture(scope="module")
def said() -> list[str]:
    found = all_messages()
    assert len(found) > 800
    return found


def test_commands_that_messages_name_exist(said: list[str]) -> None:
    """In backticks, or after `disagg` where its commands are meant."""
    plain = rf"(?<![`\w])disagg (?:{'|'.join(commands())})(?: (?:get|make-tiny|list))?(?: (?:▢|--[a-z-]+))*"
    found = [span for text in said for span in [*re.findall(r"`([^`\n]+)`", text), *re.findall(plain, text)]]
    ours = [span.replace("▢", "X") for span in found if re.match(r"(?:disagg|ray) [a-z]", span)]
    assert len(ours) > 15
    for span in ours:
        refuse_unknown_words(span)


def test_options_that_messages_name_exist(said: list[str]) -> None:
    known = options() | OTHERS_OPTIONS.keys()
    for text in said:
        for option in re.findall(r"(?<![\w=-])--[a-z][a-z-]+", text):
            assert option in known, f"{text!r}: no command has {option}"


def test_keys_that_messages_name_exist(said: list[str]) -> None:
    count = 0
    for text in said:
        for path in YAML_PATH.findall(text):
            refuse_unknown_path(path)
            count += 1
    assert count > 20


def test_variables_and_packages_that_messages_name_exist(said: list[str]) -> None:
    assert any(VARIABLE.search(text) for text in said)
    for text in said:
        refuse_unknown_variables(text)
        refuse_unknown_packages(text)


@pytest.mark.parametrize(
    "wrong", ["disagg sevre x", "disagg check x --assume-clutser y", "ray job submitt", "pip install 'disagg[cuda]'"]
)
def test_a_word_that_nothing_answers_to_is_found(wrong: str) -> None:
    with pytest.raises(AssertionError):
        refuse_unknown_words(wrong)


@pytest.mark.parametrize("wrong", ["deadlines.starts_s", "prefill.engine.page_sise", "model.path.more"])
def test_a_key_that_is_not_in_the_schema_is_found(wrong: str) -> None:
    with pytest.raises(AssertionError):
        refuse_unknown_path(wrong)
