"""Whether an adapter was made for this model: its matrices go into those of the model, by name and shape.

Way:   read_adapter -> [why_not_of]: headers of both folders' .safetensors files
Why:   SGLang loads an adapter of another model, and its scheduler dies at the first request for it (seen: 0.5.20)
Out:   empty where nothing is known against it: weights in other files, quantised ones, experts that lie in one tensor,
       input and output embeddings
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path

from disagg.models.safetensors_header import read_header

PART = re.compile(r"^(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<side>[AB])(?:\.[^.]+)?\.weight$")
PLAIN = {"F64", "F32", "F16", "BF16"}
EMBEDDINGS = ("embed_tokens", "lm_head")
EXPERTS = ".experts"
# What stands before it differs between releases of transformers: language_model.model.layers.0.… of a vision model is
# model.language_model.layers.0.… in a later one, and both name the same matrix.
LAYER = re.compile(r"(?:^|\.)((?:layers?|blocks|h)\.\d+\..+)$")
Shapes = dict[str, list[int]]  # of a plain matrix; empty: there is one, of which no more is known


def why_not_of(adapter: Path, model: Path) -> str:
    """What of the adapter this model has no place for; empty: nothing that is seen."""
    try:
        theirs = _shapes(model)
        parts = [
            (found["module"], found["side"], shape)
            for path in sorted(adapter.glob("*.safetensors"))
            for name, tensor in read_header(path).items()
            if (found := PART.match(name)) and len(shape := list(tensor["shape"])) == 2
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return ""  # a model that is not whole has rules of its own
    return next(_misfits(parts, theirs), "") if theirs else ""


def _misfits(parts: list[tuple[str, str, list[int]]], theirs: Shapes) -> Iterator[str]:
    by_tail: dict[str, list[list[int]]] = {}
    for name, matrix in theirs.items():
        by_tail.setdefault(_tail(name), []).append(matrix)
    for module, side, shape in parts:
        if module.rpartition(".")[2] in EMBEDDINGS:
            continue
        tail = _tail(module)
        matrices = [theirs[module]] if module in theirs else by_tail.get(tail, [])
        if not matrices and not _is_among_experts(tail, by_tail):
            yield f"is of another model: it changes {module}, which this one has not"
        ours, axis = (shape[1], 1) if side == "A" else (shape[0], 0)
        if matrices and all(matrix and ours != matrix[axis] for matrix in matrices):
            yield f"is of another model: its {module} has a side of {ours}, and this one's has {matrices[0][axis]}"


def _tail(module: str) -> str:
    """From its layer's number on; its last two names, where it is in none."""
    found = LAYER.search(module)
    return found[1] if found else ".".join(module.split(".")[-2:])


def _is_among_experts(module: str, theirs: Mapping[str, object]) -> bool:
    before, found, _ = module.partition(EXPERTS)
    return bool(found) and any(name.startswith(before + EXPERTS) for name in theirs)


def _shapes(model: Path) -> Shapes:
    """Read once for all adapters of a model: a large one has a hundred headers."""
    found = ((path, path.stat()) for path in sorted(model.glob("*.safetensors")))
    return _shapes_in(tuple((path, state.st_size, state.st_mtime_ns) for path, state in found))


@lru_cache(maxsize=1)
def _shapes_in(files: tuple[tuple[Path, int, int], ...]) -> Shapes:
    """Files with their sizes and stamps; read only."""
    found: Shapes = {}
    for path, _, _ in files:
        for name, tensor in read_header(path).items():
            module, _, what = name.rpartition(".")
            shape = list(tensor["shape"])
            is_matrix = what == "weight" and len(shape) == 2 and tensor["dtype"] in PLAIN
            found[module if what == "weight" else name] = shape if is_matrix else []
            found.setdefault(module, [])  # qweight, weight_packed, …
    return found
