"""Compares the frontend's token ids with those of SGLang's own tokenizer, before an engine says that it is ready.

Way:   engine host, first incarnation, not for decode -> [check_tokenizer] -> READY, or the start is refused
In:    the model's folder on this node; SGLang, which this process has imported
Owns:  $DISAGG_CACHE/compared
Fails: StartError with the text and both ids, since with other ids the model would read another prompt. A tokenizer that
       SGLang cannot load here is not compared, and the log says so: engines run without one

SGLang reads a tokenizer two or three times, which takes a second or more. So what was found equal is noted in disagg's
cache folder by its digest, and the next start does not compare it.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from disagg.errors import StartError
from disagg.installed import installed_version
from disagg.models.catalogue import cache_folder
from disagg.models.manifest import sha256_of
from disagg.tokenizer import tokenizer_files
from disagg.tokenizer.tokenizer_files import load_tokenizer

log = logging.getLogger(__name__)

PROBES = (
    "Who are you?",
    " leading and trailing ",
    "two  spaces\n\n\ttabs, 12345 digits; it's WE'RE\r\n",
    "e\u0301 \u00e9 \ufb01 Gr\u00f6\u00dfe \u65e5\u672c\u8a9e \U0001f3be\x00\x16",
    "",
)
ADDED_MAX = 8
FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "config.json")
PACKAGES = ("sglang", "transformers", "tokenizers")
WOULD_DO = "report it; with the tokenizer_class PreTrainedTokenizerFast in tokenizer_config.json both read it as it is"


def check_tokenizer(arguments: dict[str, Any]) -> None:
    """`arguments`: of sglang.Engine."""
    folder = Path(arguments.get("tokenizer_path") or arguments["model_path"])
    if not folder.is_dir() or not (folder / FILES[0]).exists():
        return  # without a tokenizer.json this host's tokenizer is transformers' own (any_tokenizer.py)
    compared = cache_folder() / "compared" / _digest(folder)
    if compared.exists():
        return
    try:
        theirs = _theirs(str(folder), trust_remote_code=bool(arguments.get("trust_remote_code")))
    except Exception as error:  # noqa: BLE001 - whatever it is, there is nothing to compare with
        log.warning("%s: SGLang's tokenizer cannot be loaded, token ids are not compared: %s", folder, error)
        return
    difference = first_difference(load_tokenizer(folder), theirs)
    if difference:
        what = f"the frontend reads texts otherwise than SGLang does: {difference}"
        raise StartError(str(folder), what, WOULD_DO)
    with contextlib.suppress(OSError):  # a cache that cannot be written: the next start compares again
        compared.parent.mkdir(parents=True, exist_ok=True)
        compared.touch()


def _digest(folder: Path) -> str:
    """Of all that a comparison depends on: the tokenizer's files, our reading of them, the packages."""
    said = hashlib.sha256(repr([(name, installed_version(name)) for name in PACKAGES]).encode())
    for file in (
        Path(tokenizer_files.__file__),
        Path(__file__),
        *(folder / name for name in FILES),
    ):
        said.update(f"\n{file.name} {sha256_of(file) if file.is_file() else ''}".encode())
    return said.hexdigest()


def _theirs(folder: str, trust_remote_code: bool) -> Any:
    from sglang.srt.utils.hf_transformers_utils import get_tokenizer

    return get_tokenizer(folder, trust_remote_code=trust_remote_code)


def first_difference(ours: Tokenizer, theirs: Any) -> str:
    """The first text whose ids differ, with or without special tokens, or whose ids decode differently; empty: none.
    `theirs`: a tokenizer of transformers."""
    for text in _probes(ours):
        for special_tokens in (True, False):
            ids = ours.encode(text, add_special_tokens=special_tokens).ids
            wanted = list(theirs(text, add_special_tokens=special_tokens)["input_ids"])
            if ids != wanted:
                return f"{text!r} is {ids} here and {wanted} there"
        said, wanted_text = ours.decode(ids, skip_special_tokens=True), theirs.decode(ids, skip_special_tokens=True)
        if said != wanted_text:
            return f"{ids} is {said!r} here and {wanted_text!r} there"
    return ""


def _probes(tokenizer: Tokenizer) -> Iterator[str]:
    yield from PROBES
    for token in list(tokenizer.get_added_tokens_decoder().values())[:ADDED_MAX]:
        yield f"a {token.content} b{token.content}{token.content}c"
