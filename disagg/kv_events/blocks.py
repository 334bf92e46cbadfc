"""Names the prefix blocks of a prompt: equal keys mean equal whole prefixes, and say nothing of the tokens.

Way:   token ids of a prompt, or of an engine's events -> [BlockHasher] -> path of block keys -> prefix_index
In:    the deployment's secret; the tokens of one KV block; adapter and cache salt, which are namespaces
Out:   `array('Q')`, one 64-bit key for each full block from the first on: key[i] = XXH3-64 of the block's ids as uint32
       little-endian, with seed key[i-1]; key[-1] is 64 bits of HMAC-SHA256(secret, namespace)
Fails: OverflowError on an id outside of uint32, ValueError on bytes that are not whole ids

XXH3 is no cryptographic hash: who does not know the secret cannot test a guessed prompt against keys, but who can have
prompts hashed could seek collisions. A collision costs a wrong guess of what a rank has cached, never a wrong answer:
engines compare tokens themselves.
"""

from __future__ import annotations

import hmac
import sys
from array import array
from collections.abc import Sequence

from xxhash import xxh3_64_intdigest

Ids = bytes | bytearray | memoryview | Sequence[int]  # token ids, or their uint32 little-endian as bytes

ID_BYTES = 4
_DOMAIN = b"disagg KV blocks\0"


class BlockHasher:
    """Makes keys for blocks of `block_tokens` tokens."""

    def __init__(self, secret: bytes, block_tokens: int) -> None:
        if block_tokens < 1:
            raise ValueError(f"block_tokens is {block_tokens}; a block has at least one token")
        self._secret = secret
        self.block_tokens = block_tokens
        self._usual_root = self.root()  # of most requests

    def path(self, ids: Ids, adapter: str = "", salt: str = "") -> array[int]:
        """The keys of a prompt's full blocks."""
        return self.after(self.root(adapter, salt) if adapter or salt else self._usual_root, ids)

    def root(self, adapter: str = "", salt: str = "") -> int:
        """The key that the first block of a namespace follows."""
        name = adapter.encode()
        namespace = b"%b%d %d %b%b" % (_DOMAIN, self.block_tokens, len(name), name, salt.encode())
        return int.from_bytes(hmac.digest(self._secret, namespace, "sha256")[:8], "little")

    def after(self, key: int, ids: Ids) -> array[int]:
        """The keys of the full blocks of `ids` where a block with this key comes before them.

        A path grows by `path.extend(hasher.after(path[-1], more_ids))`.
        """
        octets = _octets(ids)
        block_bytes = self.block_tokens * ID_BYTES
        keys = []
        for end in range(block_bytes, len(octets) + 1, block_bytes):
            key = xxh3_64_intdigest(octets[end - block_bytes : end], key) or 1  # 0 stands for an unknown key
            keys.append(key)
        return array("Q", keys)


def _octets(ids: Ids) -> bytes:
    """Token ids as uint32 little-endian."""
    if isinstance(ids, bytes):
        octets = ids
    elif isinstance(ids, (bytearray, memoryview)):
        octets = bytes(ids)
    else:
        packed = ids if isinstance(ids, array) and ids.typecode == "I" else array("I", ids)
        if sys.byteorder == "big":
            packed = packed[:]
            packed.byteswap()
        octets = packed.tobytes()
    if len(octets) % ID_BYTES:
        raise ValueError(f"{len(octets)} bytes are no whole token ids of {ID_BYTES} bytes")
    return octets
