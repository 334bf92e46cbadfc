"""SGLang's `cache_salt` and `extra_key`: requests share cached KV with those that say the same two, and with no others.

Way:   body -> [salt_of] -> CompletionRequest.salt -> both legs, and the keys of the prompt's KV blocks
Out:   one word for the two, which says neither. Engines get it as a cache_salt: SGLang's extra_key also has the
       adapter's id at its end, and a client that guessed one would share KV with what the adapter has read
Fails: BadRequest, naming the field
"""

from __future__ import annotations

import hashlib
from typing import Any

from disagg.fields import Body, refuse, typed

NAMES = ("cache_salt", "extra_key")
_DIGEST_BYTES = 16


def salt_of(body: Body) -> str:
    """ "" where the body says neither."""
    said = [_word(body.get(name), name) for name in NAMES]
    if not any(said):
        return ""
    words = b"".join(b"%d %b" % (len(word), word) for word in said)
    return hashlib.blake2b(words, digest_size=_DIGEST_BYTES).hexdigest()


def _word(value: Any, name: str) -> bytes:
    """A text, or a list with the same one for each prompt; null and "": none."""
    if isinstance(value, list):
        if any(each != value[0] for each in value[1:]):
            what = f"'{name}' must be the same for all prompts of a request; send one for each of them"
            refuse(name, "unsupported_parameter", what)
        value = value[0] if value else None
    return b"" if value is None else typed(str, value, name).encode("utf-8", "surrogatepass")
