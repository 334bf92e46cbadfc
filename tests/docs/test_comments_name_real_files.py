"""A file that a docstring or a comment of ours names is there: files move, and such names would be left behind."""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OURS = ("disagg", "prefill", "decode", "transfer", "benchmarks", "tests")
OF_SGLANG = re.compile(
    r"(?:arg_groups|configs|disaggregation|eplb|layers|models|speculative|srt)/[\w/]+\.py"
    r"|(?:data_parallel_controller|engine|tp_worker)\.py"
)
OF_OTHERS = {"version.py": "torch's, torchvision's", "handed.py": "written by a test"}
NAME = re.compile(r"(?<![\w/.*{}-])[\w/]*\w\.py\b")
EXAMPLES = {"disagg/NAME.py"}


@cache
def files() -> tuple[str, ...]:
    return tuple(f"/{file.relative_to(ROOT)}" for top in OURS for file in (ROOT / top).rglob("*.py"))


def prose(source: str) -> Iterator[tuple[int, str]]:
    """Comments, and strings of several lines or with a docstring's quotes; with their lines."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT or (token.type == tokenize.STRING and token.string.startswith('"""')):
            yield token.start[0], token.string


def strangers(source: str) -> Iterator[str]:
    for line, text in prose(source):
        for name in NAME.findall(text):
            is_known = any(file.endswith(f"/{name}") for file in files()) or name in OF_OTHERS or name in EXAMPLES
            if not is_known and not OF_SGLANG.fullmatch(name):
                yield f"{line}: {name}"


@pytest.mark.parametrize("top", OURS)
def test_files_that_docstrings_and_comments_name_are_there(top: str) -> None:
    found = [f"{file}:{each}" for file in sorted((ROOT / top).rglob("*.py")) for each in strangers(file.read_text())]
    assert not found, "\n".join(found)


def test_a_name_that_nothing_has_is_found() -> None:
    assert list(strangers('"""See ledger.py."""\nx = 1  # as in engine/warden.py\ny = "gone.py"\n')) == [
        "2: engine/warden.py"
    ]
