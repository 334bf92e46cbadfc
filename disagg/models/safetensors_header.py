"""The header of a .safetensors file: names, shapes and places of its tensors, without the tensors.

Way:   model folders, adapters -> [read_header]
Fails: ValueError where it is none, or is cut short; OSError
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HEADER_BYTES_MAX = 100 << 20  # safetensors' own limit
LENGTH_BYTES = 8


def read_header(path: Path) -> dict[str, dict[str, Any]]:
    """By tensor: dtype, shape, data_offsets (from the header's end)."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(LENGTH_BYTES), "little")
        if not 0 < length <= HEADER_BYTES_MAX:
            raise ValueError(f"{path.name} has no header")
        header = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise ValueError(f"{path.name} has no header")
    header.pop("__metadata__", None)
    ends = [tensor["data_offsets"][1] for tensor in header.values()]
    if path.stat().st_size < LENGTH_BYTES + length + max(ends, default=0):
        raise ValueError(f"{path.name} is cut short")
    return header
