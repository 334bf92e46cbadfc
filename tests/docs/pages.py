"""What our pages tell a reader to type: their shell blocks as commands, and what cannot run in a test, with its reason.

In:    README.md, CHANGELOG.md, docs/*.md, benchmarks/gpu/README.md
Out:   commands in the order of the page; a mark before a block (an HTML comment, which readers do not see) says why it,
       or those of its commands that hold a text, cannot run here:
           <!-- not run: needs a GPU -->
           <!-- not run ("docker build", "kubectl"): needs a registry -->
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "benchmarks" / "gpu" / "README.md",
]
PART = re.compile(
    r"^(?P<heading>#{2,6} [^\n]*)$|^(?P<mark><!-- not run.*?-->)\n|^```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.M | re.S
)
MARK = re.compile(r'<!-- not run(?: \((?P<texts>"[^"]+"(?:, "[^"]+")*)\))?: (?P<reason>\S.*\S) -->', re.S)


@dataclass(frozen=True)
class Command:
    section: str
    text: str  # as it stands on the page, continued lines and all
    why_not: str  # it cannot run here; empty: it runs

    @property
    def stays(self) -> bool:
        """In the foreground, until it is ended: what follows is typed into another terminal."""
        words = shlex.split(self.text, comments=True)
        return bool(re.search("disagg (serve|frontend)", " ".join(words))) and not {
            "--dry-run",
            "--no-wait",
            "--detach",
        } & set(words)


@dataclass(frozen=True)
class Block:
    section: str
    kind: str
    text: str
    marks: tuple[str, ...]

    def commands(self) -> Iterator[Command]:
        for text in commands_in(self.text):
            yield Command(self.section, text, next(filter(None, (_why_not(mark, text) for mark in self.marks)), ""))

    def useless_marks(self) -> list[str]:
        """Marks that no command needs: what they spoke of has gone."""
        texts = list(commands_in(self.text))
        return [mark for mark in self.marks if not any(_why_not(mark, text) for text in texts)]


def blocks(page: str) -> Iterator[Block]:
    section, marks = "", []
    for part in PART.finditer(page):
        if part["heading"]:
            section = part["heading"].lstrip("# ")
        elif part["mark"]:
            marks.append(part["mark"])
        else:
            yield Block(section, part["kind"], part["text"], tuple(marks))
            marks = []


def commands_in(text: str) -> Iterator[str]:
    """A command ends with its line, unless a quotation or a backslash goes on."""
    lines: list[str] = []
    for line in text.splitlines():
        lines.append(line)
        so_far = "\n".join(lines)
        if not line.endswith("\\") and _is_whole(so_far):
            lines = []
            if not re.fullmatch(r"\s*(#.*)?", so_far):
                yield so_far
    assert not lines, f"a command without its end: {lines}"


def _is_whole(text: str) -> bool:
    try:
        shlex.split(text, comments=True)
    except ValueError:  # no closing quotation yet
        return False
    return True


def _why_not(mark: str, command: str) -> str:
    found = MARK.fullmatch(mark)
    assert found, f'{mark}: a mark says `not run: REASON` or `not run ("TEXT", …): REASON`'
    texts = re.findall(r'"([^"]+)"', found["texts"] or "")
    return found["reason"] if not texts or any(text in command for text in texts) else ""
