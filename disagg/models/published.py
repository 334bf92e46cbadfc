"""What the hub says of models that need not be here: the keys of their config.json that sizes depend on.

Way:   hub id -> [published.json] -> model_config
Out:   {"source", "config"}; the hub's own keys, so that one reader does for a folder and for this table
Owns:  published.json. Its configs were read from the copies in ai-dynamo/aiconfigurator (095f58a, 2026-08-21)
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any


def published(model: str) -> dict[str, Any] | None:
    """By hub id (letters' case does not matter), or a name of the catalogue; None when it is not known."""
    entry = _table().get(model.lower())
    if entry is None or "same_as" not in entry:
        return entry
    base = _table()[entry["same_as"].lower()]
    return {"source": entry.get("source", base["source"]), "config": base["config"] | entry.get("but", {})}


@functools.cache
def _table() -> dict[str, dict[str, Any]]:
    text = Path(__file__).with_suffix(".json").read_text(encoding="utf-8")
    return {name.lower(): entry for name, entry in json.loads(text).items()}
