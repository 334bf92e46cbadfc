"""What is known of a model before anything is started: its shape, its weights' bytes, its KV cache's bytes a token.

Way:   model.path -> [facts] -> preflight, memory estimate, cost of a transfer
In:    a folder's config.json and its safetensors; for a hub id that is not here, the table in published.py
Out:   ModelFacts, or None for a hub id that nobody here knows
Fails: StartError for a config.json that cannot be understood. Downloads nothing
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from disagg.errors import StartError
from disagg.models.catalogue import CATALOGUE, model_folder
from disagg.models.context import context_length
from disagg.models.hub_config import HubConfig
from disagg.models.parameters import (
    FLOAT_BYTES,
    Parts,
    count_parameters,
    head_dim,
    modules_left,
    quantisation_of,
    weight_bytes,
)
from disagg.models.published import published

JSON_BYTES_MAX = 64 << 20  # an index of safetensors names 100,000 tensors
# With their scales: a byte for 16 numbers of half a byte, or for 32 of a byte (mxfp8).
KV_BYTES = {
    "fp8_e4m3": 1.0,
    "fp8_e5m2": 1.0,
    "mxfp8": 1.03125,
    "fp4_e2m1": 0.5625,
    "fp4_mx_block16": 0.5625,
    "nvfp4": 0.5625,
    "bf16": 2.0,
    "bfloat16": 2.0,
    "float16": 2.0,
}
INDEX_SCALE_BYTES = 4  # DeepSeek-V3.2's indexer keeps a key of fp8 and its scale, whatever the cache's dtype


@dataclass(frozen=True, slots=True)
class ModelFacts:
    source: str  # where they come from: a folder, or an address
    architecture: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    kv_lora_rank: int  # 0: no MLA
    qk_rope_head_dim: int  # of MLA
    index_head_dim: int  # of DeepSeek's sparse attention; 0: none
    experts: int  # routed ones in a layer; 0: dense
    experts_per_token: int
    shared_experts: int
    moe_layers: int
    sliding_layers: int  # keep KV of the last `sliding_window` tokens only
    sliding_window: int
    linear_layers: int  # keep a state instead of KV
    context_length: int  # 0: not known
    vocab: int
    dtype: str
    quantisation: str  # fp8, mxfp4, nvfp4, int4, …; empty: none
    parameters: Parts  # estimated
    weights: Parts  # bytes; of the files where they are here, shared out as estimated
    weights_measured: bool

    @property
    def weight_bytes(self) -> int:
        return self.weights.total

    @property
    def is_mla(self) -> bool:
        return self.kv_lora_rank > 0

    def kv_bytes_per_token(self, dtype: str = "auto") -> int:
        """Of the whole model, all ranks together and each head once. `dtype` as SGLang's kv_cache_dtype."""
        return round((self.layers - self.linear_layers) * self.layer_kv_bytes(dtype))

    def kv_bytes(self, tokens: int, dtype: str = "auto") -> int:
        """What a prompt of `tokens` leaves: a layer with a window keeps no more than that."""
        full = self.layers - self.linear_layers - self.sliding_layers
        windowed = min(tokens, self.sliding_window) if self.sliding_window else tokens
        return round((full * tokens + self.sliding_layers * windowed) * self.layer_kv_bytes(dtype))

    def layer_kv_bytes(self, dtype: str = "auto") -> float:
        """Of one token in one layer. MLA keeps one latent for all heads."""
        number = KV_BYTES.get(dtype) or FLOAT_BYTES.get(self.dtype if dtype == "auto" else dtype, 2.0)
        if not self.is_mla:
            return 2 * self.kv_heads * self.head_dim * number
        index = self.index_head_dim + INDEX_SCALE_BYTES if self.index_head_dim else 0
        return (self.kv_lora_rank + self.qk_rope_head_dim) * number + index


def find_facts(path: str, revision: str | None = None) -> ModelFacts | None:
    """`path` is what model.path says: a folder, a name of `disagg model`, or a hub id."""
    folder = folder_here(path, revision)
    if folder is not None:
        return facts_of_folder(folder)
    entry = published(path)
    return None if entry is None else facts_of_config(HubConfig.of(path, entry["config"]), entry["source"])


def facts_of_folder(folder: Path) -> ModelFacts:
    config = HubConfig.of(str(folder / "config.json"), _read_json(folder / "config.json"))
    separate = folder / "hf_quant_config.json"
    quantisation = _read_json(separate) if separate.is_file() else None
    return facts_of_config(config, str(folder), quantisation, _bytes_of_files(folder))


def facts_of_config(
    config: HubConfig, source: str, separate: dict[str, Any] | None = None, file_bytes: int | None = None
) -> ModelFacts:
    number, heads, counts = config.number, config.number("num_attention_heads"), count_parameters(config)
    dtype = config.text("dtype", "torch_dtype", default="bfloat16")
    quantisation = quantisation_of(config, separate)
    weights = weight_bytes(counts, dtype, quantisation, modules_left(config, separate))
    if file_bytes:
        share = file_bytes / max(1, weights.total)
        weights = weights.each(lambda _, estimated: estimated * share)
    return ModelFacts(
        source=source,
        architecture=config.architecture,
        layers=number("num_hidden_layers"),
        hidden=number("hidden_size"),
        heads=heads,
        kv_heads=number("num_key_value_heads", default=heads),
        head_dim=head_dim(config),
        kv_lora_rank=number("kv_lora_rank", default=0),
        qk_rope_head_dim=number("qk_rope_head_dim", default=0),
        index_head_dim=number("index_head_dim", default=0),
        experts=config.experts,
        experts_per_token=number("num_experts_per_tok", "experts_per_token", default=0) if config.experts else 0,
        shared_experts=number("n_shared_experts", default=int("shared_expert_intermediate_size" in config.keys)),
        moe_layers=config.moe_layers,
        sliding_layers=config.layers.sliding,
        sliding_window=number("sliding_window", default=0) if config.layers.sliding else 0,
        linear_layers=config.layers.linear,
        context_length=context_length(config.keys) or 0,
        vocab=number("vocab_size"),
        dtype=dtype,
        quantisation=quantisation,
        parameters=counts,
        weights=weights,
        weights_measured=bool(file_bytes),
    )


def folder_here(path: str, revision: str | None) -> Path | None:
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder.absolute()
    if "/" not in path and (path in CATALOGUE or path.startswith("tiny-")):
        made = model_folder(path)
        return made if (made / "config.json").is_file() else None
    owner, slash, name = path.partition("/")
    if not slash or "/" in name:
        return None
    hub = Path(os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME") or "~/.cache/huggingface") / "hub")
    repository = hub.expanduser() / f"models--{owner}--{name}"
    try:
        commit = (repository / "refs" / (revision or "main")).read_text(encoding="utf-8").strip()
    except OSError:
        commit = revision or "main"
    snapshot = repository / "snapshots" / commit
    return snapshot if (snapshot / "config.json").is_file() else None


def _bytes_of_files(folder: Path) -> int | None:
    """Bytes of the weights: from the index of the safetensors (right also while they download), else the files'
    sizes."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        metadata = _read_json(index).get("metadata")
        total = metadata.get("total_size") if isinstance(metadata, dict) else None
        if isinstance(total, int) and total > 0:
            return total
    return sum(path.stat().st_size for path in folder.glob("*.safetensors")) or None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            raw = file.read(JSON_BYTES_MAX + 1)
        tree = json.loads(raw)
    except OSError as error:
        raise StartError(str(path), f"cannot be read: {error.strerror or error}", "give a model's folder") from None
    except (ValueError, RecursionError) as error:
        raise StartError(str(path), f"is not JSON: {error}", "fetch the model again") from None
    if not isinstance(tree, dict):
        raise StartError(str(path), f"holds a {type(tree).__name__}, no mapping", "fetch the model again")
    return tree
