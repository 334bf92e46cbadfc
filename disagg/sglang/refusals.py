"""What SGLang says of a request that no engine would take, as its client is to read it.

Way:   SGLangLeg, when SGLang has refused its request -> [for_the_client] -> LegEnd(INVALID) -> the client's 400
In:    SGLang's message. It answers more with 400: a request that finds less memory on this engine than on another, or a
       grammar that a busy machine did not compile in time; those are tried again
"""

from __future__ import annotations

import re

OF_CLIENTS = ("Failed to compile", "Grammar-based generation", "invalid stop_regex", "stop_regex needs")
LONGEST = 1000  # llguidance names all special tokens of the model where one is wrong
# When and where xgrammar's C++ says it, and with a check that failed how the check is written there.
_PLACE = re.compile(r"^(Failed to compile \w+ grammar: )\[\d\d:\d\d:\d\d\] \S+:\d+: (?:Check failed: .*? is false: )?")
_UNTOLD = re.compile(r"(Failed to compile \w+ grammar:)(?: Unknown grammar error)?")  # all there is


def for_the_client(message: str) -> str | None:
    """The reason alone; None: another engine, or another moment, may take the request."""
    if not message.startswith(OF_CLIENTS):
        return None
    reason = _PLACE.sub(r"\1", message).strip()
    if (untold := _UNTOLD.fullmatch(reason)) is not None:
        why = "it is no valid one, or the engines' grammar backend does not take its kind"
        return f"{untold[1]} {why}; an operator would say grammar_backend: xgrammar"
    return reason if len(reason) <= LONGEST else f"{reason[:LONGEST]}…"
