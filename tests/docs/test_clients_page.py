"""docs/clients.md tells the versions that the tests run."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"^\| ([\w-]+) \| ([\d.]+) \|.*\| `([^`]+)` \|$", re.MULTILINE)
PIN = re.compile(r"^([\w.-]+)==(\S+)$", re.MULTILINE)


def pins() -> dict[str, str]:
    lists = [*(ROOT / "tests" / "clients" / "requirements").glob("*.txt"), ROOT / "disagg/cpu_profile/requirements.txt"]
    # An SDK's newest version is that of its own list: others bring older ones.
    lists.sort(key=lambda path: path.stem == "sdks")
    return {name: version for path in lists for name, version in PIN.findall(path.read_text(encoding="utf-8"))}


def test_each_client_has_the_version_that_is_pinned_and_its_program_is_there() -> None:
    rows = ROW.findall((ROOT / "docs" / "clients.md").read_text(encoding="utf-8"))
    pinned = pins()
    assert len(rows) == 9
    assert {name: version for name, version, _ in rows} == {name: pinned.get(name) for name, _, _ in rows}
    assert [program for *_, program in rows if not (ROOT / program).exists()] == []
