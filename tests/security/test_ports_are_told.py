"""docs/security.md has the table of ports that running deployments are held against."""

from __future__ import annotations

import sys
from dataclasses import astuple
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # listeners.py is no package's

from listeners import LISTENERS, Open, told

PAGE = Path(__file__).parents[2] / "docs" / "security.md"


def test_the_table_is_the_pages() -> None:
    section = PAGE.read_text().partition("\n## Ports\n")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")][2:]
    assert rows == [list(astuple(each)) for each in LISTENERS]


def test_what_is_not_in_it_is_not_told() -> None:
    assert told(Open("frontend", "frontend.port", "127.0.0.1", 8000))
    assert told(Open("Ray", "any free", "127.0.0.1", 40000))
    for unknown in (
        Open("detokenizer", "any free", "127.0.0.1", 40000),
        Open("engine host", "block + 8", "127.0.0.1", 20008),
        Open("unknown: nc -l", "any free", "127.0.0.1", 9),
        Open("engine", "@abstract", "none", path="@abstract"),
    ):
        assert not told(unknown)
