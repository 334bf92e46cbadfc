"""Fields of a body that nobody here knows: clients send some that no server foresaw.

Way:   decoded body -> reading.py -> [take_unknown] -> the row of its endpoint; their names go into the answer's head
Out:   the body without them, and their names. What is known and not built, or not for clients, is no such field: it is
       refused by name (parameters.py)
"""

from __future__ import annotations

from collections.abc import Sequence

from disagg.fields import Body
from disagg.frontend.endpoints import BY_WORD
from disagg.frontend.messages import take_unknown_of
from disagg.frontend.parameters import HARMLESS, REFUSED, UNBUILT, is_forbidden

HEADER = b"x-disagg-ignored-fields"
OF_CHATS = ("chat", "tokenize")  # in Responses' and Anthropic's words what nobody knows of a message is not looked at
SHOWN, SHOWN_CHARACTERS = 16, 64  # names in the header, and of each


def take_unknown(body: Body, endpoint: str) -> list[str]:
    """Takes them out of the body. `endpoint`: a word of READINGS."""
    known = BY_WORD[endpoint].known
    unknown = [
        name
        for name in body
        if name not in known
        and name not in HARMLESS
        and name not in UNBUILT
        and name not in REFUSED
        and not is_forbidden(name)
    ]
    for name in unknown:
        del body[name]
    if endpoint in OF_CHATS:
        unknown += take_unknown_of(body.get("messages"))
    return unknown


def header_of(names: Sequence[str]) -> bytes:
    """What a header may hold of names that a client chose."""
    shown = [name[:SHOWN_CHARACTERS].encode("ascii", "replace") for name in names[:SHOWN]]
    text = b", ".join(bytes(each if 0x20 < each < 0x7F else 0x3F for each in name) for name in shown)
    return text + b", ..." if len(names) > SHOWN else text
