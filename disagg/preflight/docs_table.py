"""The table in docs/preflight.md, written from the rules: `python -m disagg.preflight.docs_table docs/preflight.md`.

Fails: a test compares the page with the rules, so neither changes alone
"""

from __future__ import annotations

import sys
from pathlib import Path

from disagg.preflight.all_rules import RULES

HEAD = "| rule | later it would fail so | seen by | what would do |\n| --- | --- | --- | --- |"
BEGIN, END = "<!-- rules -->\n", "<!-- end of rules -->\n"


def table() -> str:
    rows = (f"| {rule.name} | {rule.why} | {rule.thread or 'us'} | {rule.would_do} |" for rule in RULES)
    return "\n".join([HEAD, *rows]) + "\n"


def filled(page: str) -> str:
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{table()}{END}{after}"


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")
