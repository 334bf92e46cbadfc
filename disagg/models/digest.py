"""Whether two folders read and write texts alike: a digest of the files that a tokenizer, its template and its sampling
defaults come from. Weights are not looked at: they are the engines' matter."""

from __future__ import annotations

import hashlib
from pathlib import Path

from disagg.models.manifest import sha256_of

FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("config.json", "generation_config.json", "chat_template.jinja", "chat_template.json"),
)


def text_digest(folder: Path) -> str:
    """Raises OSError where a file cannot be read."""
    said = hashlib.sha256()
    for file in (folder / name for name in FILES):
        said.update(f"{file.name} {sha256_of(file) if file.is_file() else ''}\n".encode())
    return said.hexdigest()
