from pathlib import Path

from disagg.preflight.all_rules import RULES
from disagg.preflight.docs_table import filled

PAGE = Path(__file__).parents[2] / "docs/preflight.md"


def test_the_page_has_every_rule_with_cause_thread_and_remedy() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == filled(page), "run `python -m disagg.preflight.docs_table docs/preflight.md`"
    assert len({rule.name for rule in RULES}) == len(RULES)
    assert all(rule.why and rule.would_do for rule in RULES)
