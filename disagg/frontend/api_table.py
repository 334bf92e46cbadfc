"""Writes the tables in docs/api.md: of fields, from the table that the code reads by (endpoints.py), and of what
differs from SGLang's own server (differences.py).

Usage: python -m disagg.frontend.api_table docs/api.md
"""

from __future__ import annotations

import sys
from collections.abc import Set
from pathlib import Path

from disagg.frontend.differences import DIFFERENCES
from disagg.frontend.endpoints import ENDPOINTS, Endpoint
from disagg.frontend.parameters import FORBIDDEN, HARMLESS, REFUSED, UNBUILT
from disagg.frontend.reading import READINGS

BEGIN, END = "<!-- fields: python -m disagg.frontend.api_table docs/api.md -->", "<!-- end of fields -->"
BEGIN_DIFFERENCES, END_DIFFERENCES = BEGIN.replace("fields", "differences"), "<!-- end of differences -->"


def table() -> str:
    rows = ["| endpoint | fields that are read | with `tokenization: engine` |", "| --- | --- | --- |"]
    rows += [f"| `{each.path}` | {_named(_read(each))} | {_in_hosts(each)} |" for each in ENDPOINTS]
    rows += ["", "| where | fields that ask for nothing here, and pass |", "| --- | --- |"]
    rows += [f"| every endpoint | {_named(HARMLESS)} |"]
    rows += [f"| `{each.path}` | {_named(each.harmless)} |" for each in ENDPOINTS if each.harmless]
    refused = UNBUILT.keys() - set().union(*(each.reads for each in ENDPOINTS))
    rows += ["", f"Refused by name, unless the value asks for nothing: {_named(refused | REFUSED.keys())}.", ""]
    rows += [f"Never for clients: {_named(FORBIDDEN)}, and names with `bootstrap_`, `disagg_` or `_dp_rank`."]
    return "\n".join(rows)


def differences() -> str:
    rows = ["| what | here | why |", "| --- | --- | --- |"]
    return "\n".join(rows + [f"| {each.what} | {each.here} | {each.why} |" for each in DIFFERENCES])


def written_into(page: str) -> str:
    for begin, end, said in ((BEGIN, END, table()), (BEGIN_DIFFERENCES, END_DIFFERENCES, differences())):
        before, _, rest = page.partition(begin)
        _, _, after = rest.partition(end)
        page = f"{before}{begin}\n{said}\n{end}{after}"
    return page


def _read(endpoint: Endpoint) -> frozenset[str]:
    """An object's own fields stand in its place."""
    inner = {f"{name}.{each}" for name, names in endpoint.inner.items() for each in names}
    return (endpoint.reads - endpoint.inner.keys()) | inner


def _in_hosts(endpoint: Endpoint) -> str:
    """A host reads what a frontend reads, by the same table (tests/tokenization compares the answers)."""
    return "equal" if endpoint.word in READINGS or endpoint.word == "responses" else "not served"


def _named(names: Set[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names))


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(written_into(path.read_text(encoding="utf-8")), encoding="utf-8")
