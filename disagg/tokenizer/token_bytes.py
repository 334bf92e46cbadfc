"""The bytes that single tokens stand for, also where they are half a character.

Way:   logprobs -> [TokenBytes] -> a token's text and bytes, as OpenAI's logprobs show them
Fails: never; a token that the tokenizer does not know has neither
"""

from __future__ import annotations

import re
from collections.abc import Callable

from tokenizers import Tokenizer

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TokenBytes:
    """Of a tokenizer that maps bytes to letters of its own (GPT-2's, Llama 3's, Qwen's, DeepSeek's), or that has a
    token for each byte it knows no character for (Llama 2's, Gemma's)."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, tuple[str, bytes]] = {}  # at most the vocabulary
        self._is_byte_level = "ByteLevel(" in str(tokenizer.decoder)
        # Another one's own way (disagg/tokenizer/any_tokenizer.py).
        self._bytes_of_id: Callable[[int], bytes] = getattr(tokenizer, "bytes_of", self._bytes_of)
        self._special = {token.content for token in tokenizer.get_added_tokens_decoder().values()}

    def __call__(self, token_id: int) -> tuple[str, bytes]:
        known = self._known.get(token_id)
        if known is None:
            own_bytes = self._bytes_of_id(token_id)
            known = self._known[token_id] = own_bytes.decode(errors="replace"), own_bytes
        return known

    def _bytes_of(self, token_id: int) -> bytes:
        token: str | None = self._tokenizer.id_to_token(token_id)
        if token is None:
            return b""
        if token in self._special:
            return token.encode()
        if self._is_byte_level and all(letter in LETTERS for letter in token):
            return bytes(LETTERS[letter] for letter in token)
        if (byte := byte_of(token)) is not None:
            return byte
        return token.replace("\u2581", " ").encode()


def byte_of(token: str) -> bytes | None:
    """Of a token that is a byte, as <0x0A>."""
    byte = _BYTE.fullmatch(token)
    return None if byte is None else bytes.fromhex(byte[1])


def _letters() -> dict[str, int]:
    """GPT-2's letters of bytes: printable ones stand for themselves, the others for those from U+0100 on, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(0x100) if byte not in printable]
    return letters | {chr(0x100 + at): byte for at, byte in enumerate(others)}


LETTERS = _letters()
