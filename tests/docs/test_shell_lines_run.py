"""Every shell line of our pages runs as it stands, in a new folder with a new HOME, knowing what the page said before.

What cannot run is marked on the page, with its reason (pages.py); test_pages_are_true.py sees to that.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pages import PAGES, ROOT, Command, blocks
from terminals import Machine, Terminal, machine

README, OPERATIONS = ROOT / "README.md", ROOT / "docs" / "operations.md"
STAYS = """
import signal, sys
signal.signal(signal.SIGINT, lambda *_: sys.exit(7))
print("] serving a", flush=True)
signal.pause()
"""


def commands(page: Path) -> list[Command]:
    """Those that run."""
    shell = [block for block in blocks(page.read_text()) if block.kind == "sh"]
    return [command for block in shell for command in block.commands() if not command.why_not]


class Reader:
    """Types a page's commands. One that stays keeps its terminal: the next is typed into another one. A new section
    begins in the first terminal, after Ctrl-C in all others."""

    def __init__(self, its_machine: Machine) -> None:
        self._machine = its_machine
        self._first = self._now = its_machine.terminal()
        self._staying: list[tuple[Command, Terminal]] = []
        self._section = ""

    def type(self, command: Command) -> str:
        if command.section != self._section:
            self.new_section(command.section)
        if command.stays:
            said = self._now.stay(command.text, until="] serving ")
            self._staying.append((command, self._now))
            self._now = self._machine.terminal()
            return said
        status, said = self._now.run(command.text)
        assert status == 0, f"`{command.text}` ended with {status}:\n{said[-4000:]}"
        return said

    def new_section(self, name: str = "") -> None:
        for command, terminal in self._staying:
            status, said = terminal.interrupt()
            is_ours = command.text.startswith("disagg ")
            assert not is_ours or status in (0, 130), f"`{command.text}` ended with {status}:\n{said[-4000:]}"
        self._staying, self._section, self._now = [], name, self._first


@pytest.fixture
def own_machine(tmp_path: Path) -> Iterator[Machine]:
    if os.geteuid() != 0:
        pytest.skip("a machine of its own, with README's ports and Ray's folders, is made of namespaces: needs root")
    with machine(tmp_path, apart=True) as made:
        yield made


@pytest.mark.engine
@pytest.mark.nodes
@pytest.mark.timeout(900)
def test_the_lines_of_readme(own_machine: Machine) -> None:
    """Two starts of real engines: by hand and as a Ray job."""
    reader = Reader(own_machine)
    said = {command.text: reader.type(command) for command in commands(README)}
    reader.new_section()
    (served,) = (text for command, text in said.items() if command.startswith("disagg serve "))
    assert "serving smollm2 on http://127.0.0.1:8000/v1 after " in served
    (answer,) = (text for command, text in said.items() if command.startswith("curl "))
    # Not at a line's begin alone: curl's meter stands before some where its output is no screen.
    events = [json.loads(line) for line in re.findall(r"data: (\{.*)$", answer, re.M)]
    words = "".join(event["choices"][0]["delta"].get("content") or "" for event in events if event["choices"])
    assert words.startswith("Roger Federer is considered one of the greatest tennis players"), words
    assert any(command.startswith("ray job submit") for command in said)


@pytest.mark.slow
@pytest.mark.nodes
@pytest.mark.timeout(600)
def test_the_lines_of_operations(own_machine: Machine) -> None:
    """On simulated engines. What the page shows as a command's output is in it, line by line."""
    reader, shown, said = Reader(own_machine), list(blocks(OPERATIONS.read_text())), ""
    for block in shown:
        if block.kind == "text":
            for line in block.text.splitlines():
                assert line in said, f"{line!r} is not in what was said:\n{said}"
        elif block.kind == "sh":
            said = "".join(reader.type(command) for command in block.commands() if not command.why_not)
    reader.new_section()


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [page for page in PAGES if page not in (README, OPERATIONS) and commands(page)], ids=lambda page: page.name
)
def test_the_lines_of_another_page(page: Path, tmp_path: Path) -> None:
    """They start nothing: plans, scripts, manifests."""
    assert not any(command.stays for command in commands(page))
    with machine(tmp_path, apart=False) as made:
        reader = Reader(made)
        for command in commands(page):
            reader.type(command)


def test_a_terminal_is_a_readers(tmp_path: Path) -> None:
    """What the pages' tests rest on: what is exported stays, a new terminal has none of it, Ctrl-C ends what stays."""
    with machine(tmp_path, apart=False) as made:
        first = made.terminal()
        assert first.run("export A=1")[0] == 0
        assert first.run("echo $A $HOME\nfalse") == (1, f"1 {tmp_path / 'home'}\n")
        assert "] serving a" in first.stay(f"python3 -c '{STAYS}'", "] serving ")
        assert made.terminal().run("echo ${A:-nothing}; source .venv/bin/activate; command -v disagg")[1].split() == [
            "nothing",
            str(Path(sys.prefix) / "bin" / "disagg"),
        ]
        assert first.interrupt()[0] == 7
        assert first.run("echo $A") == (0, "1\n")
