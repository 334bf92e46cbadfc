"""docs/api.md tells the fields that the code reads."""

from __future__ import annotations

from pathlib import Path

from disagg.frontend.api_table import written_into
from disagg.frontend.endpoints import ENDPOINTS

PAGE = Path(__file__).parents[2] / "docs" / "api.md"


def test_the_table_is_that_of_the_code() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == written_into(page), "run: python -m disagg.frontend.api_table docs/api.md"


def test_each_endpoint_is_told_of() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert [each.path for each in ENDPOINTS if f"`{each.path}`" not in page.partition("## Fields")[0]] == []
