"""What the pages say exists: commands with their options, configurations, files, links, YAML, tests."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml
from pages import PAGES, ROOT, blocks, commands_in
from spoken import refuse_unknown_variables, refuse_unknown_words, refuse_unknown_yaml

from disagg.config.find import shipped_folder
from disagg.load import load_config
from disagg.planning.cluster_shape import load_shape

SPAN = re.compile(r"(?<!`)`([^`\n]+(?:\n[^`\n]+)?)`(?!`)")
NAMED_TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
MADE_BY_THE_READER = {"build/Dockerfile", ".gpu/p0"}


def spans(text: str) -> list[str]:
    """What stands in backticks, outside of blocks."""
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    return [" ".join(span.split()) for span in SPAN.findall(prose)]


@pytest.fixture(params=PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def page(request: pytest.FixtureRequest) -> Path:
    assert isinstance(request.param, Path)
    return request.param


def test_every_shell_block_is_run_or_says_why_not(page: Path) -> None:
    """What is not marked runs in test_shell_lines_run.py; a mark that nothing needs is refused, too."""
    text = page.read_text()
    assert len(list(blocks(text))) == text.count("\n```") // 2
    assert sum(len(block.marks) for block in blocks(text)) == text.count("<!-- not run")
    for block in blocks(text):
        assert block.kind not in ("bash", "shell", "console"), f"{block.text}: say sh, so that it is run"
        if block.kind == "sh":
            assert list(block.commands())
            assert block.useless_marks() == []


def test_every_command_of_a_page_has_its_options(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that cannot run, too, and those in the text."""
    monkeypatch.setenv("DISAGG_SECRET", "0123456789abcdef" * 4)  # a page's lines export it
    text = page.read_text()
    commands = [command for block in blocks(text) if block.kind == "sh" for command in commands_in(block.text)]
    for said in [*commands, *spans(text)]:
        refuse_unknown_words(said)


def test_every_variable_of_a_page_is_read(page: Path) -> None:
    """A changelog also names those that are gone."""
    if page.name != "CHANGELOG.md":
        refuse_unknown_variables(page.read_text())


def test_files_and_links_of_a_page_are_there(page: Path) -> None:
    text = page.read_text()
    for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        assert link.startswith("https://") or (page.parent / link).exists(), link
    for name in spans(text):
        if re.fullmatch(r"(?:disagg|prefill|decode|transfer|configs|tests|docs|benchmarks)/[\w./-]*\w\.\w+", name):
            assert (ROOT / name).exists(), name


def test_yaml_of_a_page_is_valid(page: Path, tmp_path: Path) -> None:
    for number, block in enumerate(each for each in blocks(page.read_text()) if each.kind == "yaml"):
        file = tmp_path / f"snippet-{number}.yaml"
        file.write_text(block.text)
        if "nodes" in yaml.safe_load(block.text):
            load_shape(file)
        else:
            load_config(file)
    for said in spans(page.read_text()):
        refuse_unknown_yaml(said, tmp_path)


def test_commands_in_the_heads_of_configurations_have_their_options() -> None:
    files = [*shipped_folder().glob("*.yaml"), *shipped_folder().glob("clusters/*.yaml")]
    heads = "\n".join(line for file in files for line in file.read_text().splitlines() if line.startswith("#"))
    found = re.findall(r"\b((?:disagg|ray) (?:serve|check|model|job|start|deploy)\b[^#;,()\n]*)", heads)
    assert len(found) > 10
    for said in found:
        refuse_unknown_words(said)


def test_what_a_page_shows_of_a_test_is_there(page: Path) -> None:
    for path, name in NAMED_TEST.findall(page.read_text()):
        assert re.search(rf"^\s*(?:async )?def {name}\(", (ROOT / path).read_text(), re.M), f"{path} has no {name}"


def test_a_command_of_several_lines_is_one() -> None:
    text = "one 'a\n  b' # c\n# alone\n\ntwo \\\n  more\nA=$(three)\n"
    assert list(commands_in(text)) == ["one 'a\n  b' # c", "two \\\n  more", "A=$(three)"]
    assert shlex.split("one 'a\n  b' # c", comments=True) == ["one", "a\n  b"]
