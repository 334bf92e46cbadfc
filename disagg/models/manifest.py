"""What a finished model folder consists of: written last, so a folder that has it is complete.

Way:   convert -> [manifest] -> rename to its place; read again by every later `get`
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

MANIFEST = "disagg-manifest.json"


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: Path, origin: dict[str, Any]) -> None:
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name != MANIFEST
    }
    (folder / MANIFEST).write_text(json.dumps({"origin": origin, "files": files}, indent=1) + "\n", encoding="utf-8")


def damage(folder: Path, hashes: bool = False, recipe: int | None = None) -> str | None:
    """What keeps `folder` from being the model its manifest describes; None when nothing does.

    Sizes are compared always, contents only with `hashes`; what made it, only with `recipe`.
    """
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files: dict[str, dict[str, Any]] = manifest["files"]
        if recipe is not None and manifest["origin"].get("recipe") != recipe:
            return "an earlier version of disagg made it"
        for name, expected in files.items():
            path = folder / name
            if path.stat().st_size != expected["bytes"]:
                return f"{name} has {path.stat().st_size} bytes, not {expected['bytes']}"
            if hashes and sha256_of(path) != expected["sha256"]:
                return f"{name} does not have the SHA-256 it was written with"
    except FileNotFoundError as error:
        return f"{Path(str(error.filename)).name} is missing"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} cannot be read"
    return None
