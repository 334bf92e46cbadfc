"""The lists in docs/sglang-versions.md, made from the code; `python -m tests.config.sglang_document` renews them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from disagg.sglang.owned_arguments import OWNED_ARGUMENTS
from disagg.sglang.releases import RELEASES, release, spans
from disagg.sglang.versions import RENAMED, REPLACED

DOCUMENT = Path(__file__).parents[2] / "docs" / "sglang-versions.md"
LIST = re.compile(r"(<!-- list: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def renewed(text: str) -> str:
    """The document with every list in it as the code has it."""
    lists = {"renamed": _renamed, "replaced": _replaced, "changed": _changed, "refused": _refused}
    return LIST.sub(lambda found: found[1] + "".join(f"{line}\n" for line in lists[found[2]]()) + found[3], text)


def renew() -> None:
    DOCUMENT.write_text(renewed(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")


def _renamed() -> Iterator[str]:
    yield from ("| said | taken for |", "| --- | --- |")
    yield from (f"| `{old}` | `{new}` |" for old, new in RENAMED.items())


def _replaced() -> Iterator[str]:
    yield from ("| said | answer where the release has no such argument |", "| --- | --- |")
    yield from (f"| `{old}` | {what} |" for old, what in REPLACED.items())


def _changed() -> Iterator[str]:
    yield from ("| release | arguments | new in it | gone with it |", "| --- | --- | --- | --- |")
    before: set[str] = set()
    for version in RELEASES:
        now = set(release(version).arguments)
        came, went = ("-", "-") if not before else (_names(now - before), _names(before - now))
        yield f"| {version} | {len(now)} | {came} | {went} |"
        before = now


def _refused() -> Iterator[str]:
    yield from ("| arguments | why | what would do |", "| --- | --- | --- |")
    reasons = list(dict.fromkeys(OWNED_ARGUMENTS.values()))
    by_reason = sorted(OWNED_ARGUMENTS, key=lambda name: reasons.index(OWNED_ARGUMENTS[name]))
    for reason, names in groupby(by_reason, OWNED_ARGUMENTS.__getitem__):
        yield f"| {', '.join(_with_span(name) for name in names)} | {reason[0]} | {reason[1]} |"


def _with_span(name: str) -> str:
    """With the releases that have it, where not all do."""
    first, last = spans(name)[0] if spans(name) else (RELEASES[0], RELEASES[-1])
    if (first, last) == (RELEASES[0], RELEASES[-1]):
        return f"`{name}`"
    return f"`{name}` (from {first})" if last == RELEASES[-1] else f"`{name}` (to {last})"


def _names(names: set[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names)) or "-"


if __name__ == "__main__":
    renew()
