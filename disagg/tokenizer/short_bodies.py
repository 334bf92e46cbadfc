"""Which bodies of clients are quick to read, whatever they hold: told by their bytes, before anybody decodes them.

Way:   body -> [is_short] -> here, or a process of its own: a frontend's (disagg/frontend/readers.py), or one of the two
       kinds that an engine's host has (disagg/process/text_service.py)
Why:   a message, a part of one or a list in `metadata` costs as much as hundreds of letters, and a query is read again
       with each of its documents
"""

from __future__ import annotations

# Below an engine's step of some 5 ms.
SHORT_BYTES = 32 << 10
SHORT_BYTES_SLOW = 8 << 10  # where text is tokenised four times slower (disagg/tokenizer/encoder.py)
SHORT_BYTES_PAIRED = 2 << 10  # where one text is read again with each of the others
SHORT_TEXTS = 500  # of a batch: each is tokenised by itself
SHORT_BRACES = 500  # a message without content is 28 bytes, and costs as much as a thousand letters
PAIRED = ("rank", "scor")  # words of READINGS (disagg/frontend/reading.py)
BATCHED = ("embd", "clas", *PAIRED)


def is_short(data: bytes, *, is_fast: bool, endpoint: str) -> bool:
    """`is_fast`: see disagg/tokenizer/encoder.py."""
    limit_bytes = SHORT_BYTES if is_fast else SHORT_BYTES_SLOW
    if endpoint in PAIRED:
        limit_bytes = SHORT_BYTES_PAIRED
    if len(data) > limit_bytes or data.count(b"{") > SHORT_BRACES:
        return False
    return endpoint not in BATCHED or data.count(b'"') // 2 <= SHORT_TEXTS
