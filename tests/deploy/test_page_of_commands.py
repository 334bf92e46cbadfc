"""docs/deploy.md says commands: those of ours work as they are written."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from rendered import deploy

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "deploy.md").read_text()


def commands() -> list[str]:
    """The `disagg deploy` ones of its code blocks, continued lines joined, without comments."""
    blocks = "\n".join(re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)).replace("\\\n", " ")
    found = re.findall(r"^(?:# or: )?(disagg deploy .*)$", blocks, re.MULTILINE)
    return [" ".join(shlex.quote(word) for word in shlex.split(each, comments=True)) for each in found]


def test_the_page_has_a_command_for_each_rendering() -> None:
    assert {shlex.split(command)[2] for command in commands()} == {"slurm", "k8s", "docker"}


@pytest.mark.parametrize("command", commands())
def test_a_command_of_the_page_works(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    words = shlex.split(command.replace("$REGISTRY", "registry.example"))
    deploy(*words[2:])
    assert [path for path in tmp_path.iterdir() if path.name != "configs"], "nothing was written"


def test_configurations_and_tests_that_the_page_names_exist() -> None:
    for path in re.findall(r"\b((?:tests|configs)/[\w/-]+\.(?:py|yaml))", PAGE):
        assert (ROOT / path).exists(), path
