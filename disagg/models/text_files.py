"""Reads the small files of a model's folder: texts and JSON objects, or an error that names the file.

Way:   model's folder -> [read_text, read_object] -> tokenizer, template, checks
Fails: StartError: unreadable, not UTF-8, not JSON, or a git-lfs pointer in the place of the file it stands for
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from disagg.errors import StartError

LFS_START = b"version https://git-lfs.github.com/spec/"
LFS_BYTES_MAX = 1024  # of a pointer
LFS_WHAT = "is a pointer of git-lfs, not the file itself"
LFS_REMEDY = "run `git lfs pull` in the model's folder, or get the model again"


def is_lfs_pointer(file: Path) -> bool:
    if not file.is_file() or file.stat().st_size > LFS_BYTES_MAX:
        return False
    with file.open("rb") as opened:
        return opened.read(len(LFS_START)) == LFS_START


def read_text(file: Path) -> str:
    try:
        if is_lfs_pointer(file):
            raise StartError(str(file), LFS_WHAT, LFS_REMEDY)
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise StartError(str(file), f"is not UTF-8: {error}", "get the model again") from error
    except OSError as error:
        raise StartError(str(file), f"cannot be read: {error.strerror or error}", "check its owner and mode") from error


def read_object(file: Path) -> dict[str, Any]:
    """Empty for a file that is not there."""
    if not file.exists():
        return {}
    try:
        content = json.loads(read_text(file))
    except (ValueError, RecursionError) as error:
        raise StartError(str(file), f"is not JSON: {error}", "get the model again") from error
    if not isinstance(content, dict):
        raise StartError(str(file), f"holds {type(content).__name__}, not an object", "get the model again")
    return content
