"""README and docs/architecture.md name every room of the house, and no file that is not there."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ARCHITECTURE = ROOT / "docs" / "architecture.md"
WITH_PATHS = [ROOT / "README.md", ARCHITECTURE]
TOP = "disagg|prefill|decode|transfer|configs|tests|docs|benchmarks"


def section(page: Path, heading: str) -> str:
    found = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", page.read_text(), re.M | re.S)
    assert found, f"{page.name} has no section {heading!r}"
    return found[1]


def rooms() -> list[str]:
    """Packages of the orchestrator."""
    return sorted(folder.name for folder in (ROOT / "disagg").iterdir() if any(folder.glob("*.py")))


def top_folders() -> list[str]:
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files"], check=True, capture_output=True, text=True).stdout
    return sorted({line.split("/")[0] for line in listed.splitlines() if "/" in line and not line.startswith(".")})


@pytest.mark.parametrize(("page", "heading"), [(WITH_PATHS[0], "Where things are"), (ARCHITECTURE, "Rooms")])
def test_every_room_is_named(page: Path, heading: str) -> None:
    words = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`]+)`", section(page, heading)))))
    assert not [room for room in rooms() if room not in words]


def test_readme_names_the_folders_at_the_top() -> None:
    text = section(WITH_PATHS[0], "Where things are")
    assert not [folder for folder in top_folders() if f"`{folder}/`" not in text]


@pytest.mark.parametrize("page", WITH_PATHS, ids=lambda page: page.name)
def test_every_path_of_the_page_is_there(page: Path) -> None:
    """In backticks, in tables, in drawings: a path with a folder of ours in front, file or folder."""
    paths = re.findall(rf"(?<![\w/.:-])((?:{TOP})/[\w./-]*\w(?:/|\b))", page.read_text())
    assert len(paths) > 5
    assert not [path for path in paths if not (ROOT / path).exists()]


def test_file_names_of_the_architecture_are_there() -> None:
    """Also those without a folder, as in `frontend/app.py` or `ledger.py`."""
    names = set(re.findall(r"(?<![\w/.-])([\w/]*\w\.py)\b", ARCHITECTURE.read_text()))
    files = [f"/{file}" for file in subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "*.py"],
        check=True, capture_output=True, text=True,
    ).stdout.split()]  # fmt: skip
    assert len(names) > 40
    assert not sorted(name for name in names if not any(file.endswith(f"/{name}") for file in files))
