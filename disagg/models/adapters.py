"""Reads a LoRA adapter's folder, as PEFT writes one: what an engine has to be made for, and whether it is whole.

Way:   YAML, or a probe on a node -> [read_adapter] -> AdapterFiles -> disagg/config/lora.py, preflight rules
Fails: never; what keeps an engine from loading it is told in `absent`
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from disagg.models.adapter_fit import why_not_of
from disagg.models.manifest import sha256_of

CONFIG = "adapter_config.json"
WEIGHTS = (".safetensors", ".bin")
STACKED, FIRST = {"k_proj", "v_proj"}, "q_proj"  # SGLang stacks them behind it, and takes for granted that it is there
# What SGLang, 0.5.16 to 0.5.23, reads of no adapter; and the values that ask for nothing.
UNREAD = {"use_rslora": (), "rank_pattern": (), "alpha_pattern": (), "modules_to_save": (), "bias": ("none",)}
BYTES_MAX = 4 << 20  # of adapter_config.json


class AdapterFiles(NamedTuple):
    folder: str
    absent: str = ""  # why no engine could load it
    rank: int = 0
    modules: tuple[str, ...] = ()  # their last names: q_proj; empty: it does not list them
    digest: str = ""  # of its configuration, and its weights' names and sizes


def read_adapter(folder: str, model: str = "") -> AdapterFiles:
    """`model`: the folder of the model that it is for, where that is known."""
    files = _read(folder)
    if model and not files.absent and (why := why_not_of(Path(folder), Path(model))):
        return AdapterFiles(folder, f"{why}: SGLang loads it, and dies at its first use")
    return files


def _read(folder: str) -> AdapterFiles:
    here = Path(folder)
    try:
        if not here.is_dir():
            return AdapterFiles(folder, "is not there")
        if not (here / CONFIG).is_file():
            return AdapterFiles(folder, f"holds no {CONFIG}")
        weights = sorted(path for path in here.iterdir() if path.suffix in WEIGHTS and path.is_file())
        if not weights:
            return AdapterFiles(folder, "holds no weights (adapter_model.safetensors)")
        if (here / CONFIG).stat().st_size > BYTES_MAX:
            return AdapterFiles(folder, f"has a {CONFIG} of more than {BYTES_MAX >> 20} MiB")
        config = json.loads((here / CONFIG).read_bytes())
        sizes = " ".join(f"{path.name} {path.stat().st_size}" for path in weights)
        digest = f"{sha256_of(here / CONFIG)} {sizes}"
    except OSError as error:
        return AdapterFiles(folder, f"cannot be read: {error.strerror or error}")
    except ValueError:
        return AdapterFiles(folder, f"has a {CONFIG} that is no JSON")
    return _told(folder, config, digest)


def _told(folder: str, config: Any, digest: str) -> AdapterFiles:
    if not isinstance(config, Mapping) or str(config.get("peft_type", "LORA")).upper() != "LORA":
        return AdapterFiles(folder, f"is no LoRA adapter: see peft_type in its {CONFIG}")
    if config.get("use_dora"):
        return AdapterFiles(folder, "is a DoRA adapter, and SGLang runs plain LoRA alone")
    unread = [name for name, neutral in UNREAD.items() if config.get(name) and config[name] not in neutral]
    if unread:
        what = f"has {', '.join(unread)} in its {CONFIG}: SGLang would load it without, and say another model's tokens"
        return AdapterFiles(folder, what)
    rank, said = config.get("r"), config.get("target_modules")
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        return AdapterFiles(folder, f"says no rank: see r in its {CONFIG}")
    names = said if isinstance(said, list) else []
    modules = sorted({str(name).rpartition(".")[2] for name in names})
    if STACKED.intersection(modules) and FIRST not in modules:  # seen: SGLang 0.5.20
        given = ", ".join(sorted(STACKED.intersection(modules)))
        return AdapterFiles(folder, f"changes {given} and not {FIRST}: SGLang loads it, and dies at its first use")
    return AdapterFiles(folder, "", rank, tuple(modules), digest)
