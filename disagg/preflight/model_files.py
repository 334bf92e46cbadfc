"""Reads a model's folder as one node has it: whole or not, and digests to compare it with the other nodes'.

Way:   probe on a node -> [read_model_files] -> ModelFiles -> rules
Out:   seconds for a model of 163 files: indexes and headers are read, no weights. With `deep` everything is
Fails: never; what cannot be read is told in `absent`
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from disagg.errors import StartError
from disagg.models.manifest import sha256_of
from disagg.models.safetensors_header import read_header
from disagg.models.text_files import is_lfs_pointer
from disagg.preflight.node_facts import ModelFiles
from disagg.tokenizer.tokenizer_files import load_tokenizer

INDEX = "model.safetensors.index.json"
TOKENIZER = (
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "tiktoken.model", "vocab.json", "merges.txt"),
    *("special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "chat_template.json"),
)
TEXTS = frozenset(name for name in TOKENIZER if name.endswith((".json", ".jinja"))) | {"generation_config.json"}
WEIGHTS = (".safetensors", ".bin", ".gguf", ".pt")
_NO_STEPS = ("Sequence", "String", "Regex")  # what holds steps, and what they look for
_STEP = re.compile(r"([A-Z]\w+)\(")  # ByteLevel(add_prefix_space=True, …)


def read_model_files(folder: Path, deep: bool = False) -> ModelFiles:
    try:
        if not folder.is_dir():
            return ModelFiles(str(folder), absent="config.json is not there")
        files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
        pointers = tuple(path.name for path in files if is_lfs_pointer(path))
        if pointers:  # nothing else is checked in them
            return ModelFiles(str(folder), pointers=pointers)
        config = _read_json(folder / "config.json")
        weights = [path for path in files if path.suffix in WEIGHTS]
        read = [path for path in files if path in weights or path.name in (*TOKENIZER, "config.json", INDEX)]
        missing = _named_by_index(folder) - {path.name for path in files}
        return ModelFiles(
            folder=str(folder),
            missing=tuple(sorted(missing)),
            truncated=tuple(path.name for path in weights if path.suffix == ".safetensors" and _is_short(path)),
            damaged=tuple(path.name for path in files if path.name in TEXTS and not _is_readable(path)),
            sizes=_digest(f"{path.name} {path.stat().st_size}" for path in weights),
            config=sha256_of(folder / "config.json"),
            tokenizer=_digest(sha256_of(path) for path in files if path.name in TOKENIZER),
            content=_digest(f"{path.name} {sha256_of(path)}" for path in read) if deep else "",
            decoder=_decoder(folder),
            model_type=str(config.get("model_type", "")),
            needs_remote_code="auto_map" in config and not _transformers_knows(str(config.get("model_type", ""))),
        )
    except FileNotFoundError as error:
        return ModelFiles(str(folder), absent=f"{Path(str(error.filename)).name} is not there")
    except OSError as error:
        return ModelFiles(str(folder), absent=f"cannot be read: {error.strerror or error}")
    except ValueError as error:
        return ModelFiles(str(folder), absent=f"is damaged: {error}")


def _decoder(folder: Path) -> tuple[str, ...] | None:
    """Of the tokenizer as SGLang makes it, which may be of another class than the one that wrote tokenizer.json."""
    try:
        steps = _STEP.findall(str(load_tokenizer(folder).decoder))
    except StartError:
        return None
    return tuple(step for step in steps if step not in _NO_STEPS)


def _is_readable(path: Path) -> bool:
    text = path.read_bytes()
    try:
        if path.suffix == ".json":
            json.loads(text)
        else:
            text.decode()
    except ValueError:
        return False
    return True


def _read_json(path: Path) -> dict[str, Any]:
    tree = json.loads(path.read_bytes())
    if not isinstance(tree, dict):
        raise ValueError(f"{path.name} holds no mapping")
    return tree


def _named_by_index(folder: Path) -> set[str]:
    index = folder / INDEX
    weights = _read_json(index).get("weight_map") if index.is_file() else None
    return set(map(str, weights.values())) if isinstance(weights, dict) else set()


def _is_short(path: Path) -> bool:
    try:
        read_header(path)
    except (ValueError, LookupError, TypeError):
        return True
    return False


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _transformers_knows(model_type: str) -> bool:
    """Whether transformers knows the model type. Read from its source: the import would take seconds."""
    package = importlib.util.find_spec("transformers")
    if package is None or package.origin is None:
        return True  # not known, then
    names = Path(package.origin).parent / "models" / "auto" / "configuration_auto.py"
    mappings = names.with_name("auto_mappings.py")
    known = "".join(path.read_text(encoding="utf-8") for path in (names, mappings) if path.is_file())
    return f'"{model_type}"' in known
