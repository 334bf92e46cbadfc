"""A tokenizer that the Rust library cannot read, through transformers: Python's own, tiktoken's, code of the model.

Way:   an engine's host and its readers of bodies -> [load_any] -> Codec, Texts. Never in a frontend
In:    the model's folder, where transformers is installed
Out:   the Rust tokenizer where there is one, also where transformers makes it (of a tokenizer.model); else a
       ForeignTokenizer, which has of `tokenizers.Tokenizer` what is called here
Fails: StartError, with what transformers said
Cost:  a ForeignTokenizer decodes each token beside those before it: some 20 to 100 µs, where a byte-level one costs 0.3
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from tokenizers import Tokenizer

from disagg.errors import StartError
from disagg.tokenizer.token_bytes import LETTERS, byte_of
from disagg.tokenizer.tokenizer_files import FILE, load_tokenizer

MORE_IDS = 1 << 22  # no vocabulary has more


def load_any(folder: Path, *, trust_remote_code: bool) -> Tokenizer:
    """(What is no Rust tokenizer has all that is called of one.)"""
    why = "it has no tokenizer.json"
    if (folder / FILE).exists():
        try:
            return load_tokenizer(folder)
        except StartError as error:
            why = error.what
    try:
        from transformers import AutoTokenizer

        theirs = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
    except Exception as error:  # of the model's own code, too
        would_do = "get the model again; where it brings code of its own, set model.trust_remote_code: true"
        said = " ".join(str(error).split())
        raise StartError(str(folder), f"{why}, and transformers reads no tokenizer there: {said}", would_do) from error
    rust = getattr(theirs, "backend_tokenizer", None)
    if isinstance(rust, Tokenizer):
        rust.no_truncation()
        rust.no_padding()
        return rust
    return cast(Tokenizer, ForeignTokenizer(theirs))


@dataclass(frozen=True, slots=True)
class Encoding:
    ids: list[int]
    type_ids: list[int]


class ForeignTokenizer:
    """`theirs`: a tokenizer of transformers that is Python all through."""

    decoder = None

    def __init__(self, theirs: Any) -> None:
        self._theirs = theirs

    def encode(self, text: str, pair: str | None = None, add_special_tokens: bool = True) -> Encoding:
        said = self._theirs(text, pair, add_special_tokens=add_special_tokens, return_token_type_ids=pair is not None)
        return Encoding(list(said["input_ids"]), list(said.get("token_type_ids", ())))

    def decode(self, token_ids: list[int], skip_special_tokens: bool = True) -> str:
        """Ids that it does not know have no text."""
        known = [each for each in token_ids if self.id_to_token(each) is not None]
        kept: dict[str, bool] = {"clean_up_tokenization_spaces": False, "skip_special_tokens": skip_special_tokens}
        return cast(str, self._theirs.decode(known, **kept)) if known else ""

    def id_to_token(self, token_id: int) -> str | None:
        token = self._token(token_id)
        return token.decode(errors="replace") if isinstance(token, bytes) else token

    def token_to_id(self, token: str) -> int | None:
        token_id = self._theirs.convert_tokens_to_ids(token)
        return token_id if isinstance(token_id, int) and self.id_to_token(token_id) == token else None

    def get_vocab_size(self) -> int:
        return len(self._theirs)

    def get_added_tokens_decoder(self) -> dict[int, Any]:
        return dict(self._theirs.added_tokens_decoder)

    def to_str(self) -> str:
        raise ValueError("it is no Rust tokenizer")

    def bytes_of(self, token_id: int) -> bytes:
        """A token's own. Some write it as bytes, others in GPT-2's letters or in SentencePiece's, others as text."""
        token = self._token(token_id)
        if token is None or isinstance(token, bytes):
            return token or b""
        if token in {each.content for each in self._theirs.added_tokens_decoder.values()}:
            return token.encode()
        if (byte := byte_of(token)) is not None:
            return byte
        if "\u2581" in token:
            return token.replace("\u2581", " ").encode()
        text = self.decode([token_id], skip_special_tokens=False)
        if text != token and all(letter in LETTERS for letter in token):
            return bytes(LETTERS[letter] for letter in token)
        return text.encode()

    def decode_stream(self, skip_special_tokens: bool) -> ForeignStream:
        return ForeignStream(skip_special_tokens)

    def _token(self, token_id: int) -> str | bytes | None:
        """None: there is none. Some tokenizers raise then, each in its way."""
        if not 0 <= token_id < MORE_IDS:
            return None
        try:
            return cast("str | bytes | None", self._theirs.convert_ids_to_tokens(token_id))
        except (LookupError, ValueError, TypeError, OverflowError):
            return None


class ForeignStream:
    """What `tokenizers.decoders.DecodeStream` is of a Rust tokenizer: text as soon as it is whole."""

    def __init__(self, skip_special_tokens: bool) -> None:
        self._skip = skip_special_tokens
        self._before: list[int] = []  # whose text is told, and which the next token's depends on
        self._new: list[int] = []

    def step(self, tokenizer: ForeignTokenizer, token_id: int) -> str | None:
        """None: no more text, or half a character."""
        self._new.append(token_id)
        decode: Callable[..., str] = tokenizer.decode
        told = decode(self._before, skip_special_tokens=self._skip)
        text = decode(self._before + self._new, skip_special_tokens=self._skip)
        if len(text) <= len(told) or text.endswith("\ufffd"):
            return None
        self._before, self._new = self._new, []
        return text[len(told) :]
