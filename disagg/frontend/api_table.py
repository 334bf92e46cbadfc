"""Writes the tables in docs/api.md: of fields, from what the code reads, and of what differs from SGLang's server.

Usage: python -m disagg.frontend.api_table docs/api.md
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Set
from pathlib import Path

from disagg.frontend.differences import DIFFERENCES
from disagg.frontend.inputs import FIELDS as INPUT_FIELDS
from disagg.frontend.messages_api.request import HARMLESS as HARMLESS_OF_MESSAGES
from disagg.frontend.messages_api.request import OWN as OF_MESSAGES
from disagg.frontend.native_api.request import BESIDE, RENAMED, SAME, UNREAD
from disagg.frontend.parameters import CHAT, COMPLETION, DETOKENIZE, FORBIDDEN, HARMLESS, REFUSED, TOKENIZE, UNBUILT
from disagg.frontend.responses_api.request import HARMLESS as HARMLESS_OF_RESPONSES
from disagg.frontend.responses_api.request import OWN as OF_RESPONSES

BEGIN, END = "<!-- fields: python -m disagg.frontend.api_table docs/api.md -->", "<!-- end of fields -->"
SAMPLING_OF_GENERATE = {f"sampling_params.{name}" for name in SAME | RENAMED.keys()}
BEGIN_DIFFERENCES = BEGIN.replace("fields", "differences")
END_DIFFERENCES = "<!-- end of differences -->"
READ: Mapping[str, Set[str]] = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": COMPLETION,
    "/v1/responses": OF_RESPONSES,
    "/v1/messages": OF_MESSAGES,
    "/generate": BESIDE | SAMPLING_OF_GENERATE | {"text", "input_ids", "stream", "model"},
    "/tokenize": TOKENIZE,
    "/detokenize": DETOKENIZE,
    "/v1/embeddings": INPUT_FIELDS["embd"],
    "/v1/classify": INPUT_FIELDS["clas"],
    "/v1/rerank": INPUT_FIELDS["rank"],
    "/v1/score": INPUT_FIELDS["scor"],
}
IGNORED: Mapping[str, Set[str]] = {
    "every endpoint": HARMLESS,
    "/v1/responses": HARMLESS_OF_RESPONSES,
    "/v1/messages": HARMLESS_OF_MESSAGES,
    "/generate": UNREAD,
}


def table() -> str:
    rows = ["| endpoint | fields that are read |", "| --- | --- |"]
    rows += [f"| `{path}` | {_named(names)} |" for path, names in READ.items()]
    rows += ["", "| where | fields that ask for nothing here, and pass |", "| --- | --- |"]
    rows += [f"| {where if ' ' in where else f'`{where}`'} | {_named(names)} |" for where, names in IGNORED.items()]
    refused = UNBUILT.keys() - set().union(*READ.values())
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


def _named(names: Set[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names))


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(written_into(path.read_text(encoding="utf-8")), encoding="utf-8")
