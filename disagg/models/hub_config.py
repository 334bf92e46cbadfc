"""A model's config.json, its keys spelled as one architecture or the other does, each number checked.

Way:   config.json -> [hub_config] -> parameters, facts
Fails: StartError for a key that is missing or no number; a key nobody knows is left alone
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from disagg.errors import StartError

# Only their sliding windows shrink the KV that SGLang keeps (0.5.20, configs/model_config.py is_hybrid_swa_model); the
# layers of others, Mistral's or Gemma 3's, keep all tokens there.
WINDOWED = frozenset(
    {
        "Llama4ForConditionalGeneration",
        "DeepseekV4ForCausalLM",
        "GptOssForCausalLM",
        "GraniteSWAForCausalLM",
        "GraniteMoeSWAForCausalLM",
        "MiMoV2ForCausalLM",
        "MiMoV2FlashForCausalLM",
        "Step3p5ForCausalLM",
        "Step3p7ForConditionalGeneration",
        "Gemma4ForCausalLM",
        "Gemma4ForConditionalGeneration",
        "Gemma4UnifiedForConditionalGeneration",
        "LagunaForCausalLM",
        "MellumForCausalLM",
        "MuseGlimmerForCausalLM",
        "MuseGlimmerForConditionalGeneration",
        "InklingForConditionalGeneration",
        "UnlimitedOCRForCausalLM",
    }
)
NO_MODEL_OF_TEXT = "give the folder of a language model in the hub's format"


class LayerCounts(NamedTuple):
    """By what a layer keeps of the tokens before."""

    sliding: int  # those in its window
    linear: int  # a state of one size; the others keep all of them


@dataclass(frozen=True, slots=True)
class HubConfig:
    """The keys of one config.json; those of `text_config` stand in front. Counts are whole numbers, 0 or more."""

    where: str  # for messages: the file, or the hub id
    keys: dict[str, Any]

    @classmethod
    def of(cls, where: str, tree: Any) -> HubConfig:
        """A model that sees or hears has its language model's numbers in text_config."""
        if not isinstance(tree, dict):
            raise StartError(where, f"holds a {type(tree).__name__}, no mapping", NO_MODEL_OF_TEXT)
        text = tree.get("text_config")
        return cls(where, tree | text if isinstance(text, dict) else tree)

    def number(self, *names: str, default: int | None = None) -> int:
        """The first of `names` that is said and not null."""
        for name in names:
            value = self.keys.get(name)
            if value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise StartError(self.where, f"{name} is {value!r:.40}, no whole number", NO_MODEL_OF_TEXT)
            return value
        if default is None:
            raise StartError(self.where, f"says no {names[0]}", NO_MODEL_OF_TEXT)
        return default

    def width(self, *names: str) -> int:
        """Of a feed-forward layer; the mean, where the first of `names` that is said has one for each layer."""
        said = next((value for name in names if (value := self.keys.get(name)) is not None), None)
        if isinstance(said, list) and said and all(isinstance(width, int) for width in said):
            return round(sum(said) / len(said))
        return self.number(*names)

    def text(self, *names: str, default: str = "") -> str:
        return next((value for name in names if isinstance(value := self.keys.get(name), str)), default)

    @property
    def architecture(self) -> str:
        named = self.keys.get("architectures")
        return str(named[0]) if isinstance(named, list) and named else self.text("model_type", default="unknown")

    @property
    def layers(self) -> LayerCounts:
        total = self.number("num_hidden_layers")
        kinds = self.keys.get("layer_types")
        if isinstance(kinds, list) and len(kinds) == total:
            linear = sum("linear" in str(kind) or "mamba" in str(kind) for kind in kinds)
            sliding = (
                sum("sliding" in str(kind) or "chunked" in str(kind) for kind in kinds) if self._is_windowed else 0
            )
        elif interval := self.number("full_attention_interval", default=0):
            linear, sliding = total - total // interval, 0
        else:
            linear, sliding = 0, self._sliding_by_pattern(total) if self._is_windowed else 0
        return LayerCounts(sliding, linear)

    @property
    def _is_windowed(self) -> bool:
        return self.architecture in WINDOWED or self.keys.get("is_hybrid_swa") is True

    def _sliding_by_pattern(self, total: int) -> int:
        """Layer by layer, or how many come to a full one."""
        pattern = self.keys.get("hybrid_layer_pattern")
        if isinstance(pattern, list) and len(pattern) == total:
            return sum(kind == 1 for kind in pattern)
        every = self.number("sliding_window_pattern", default=4 if self.architecture.startswith("Llama4") else 0)
        if every:
            return total - total // every
        return total if self.number("sliding_window", default=0) else 0

    @property
    def experts(self) -> int:
        return self.number("n_routed_experts", "num_experts", "num_local_experts", default=0)

    @property
    def moe_layers(self) -> int:
        """Layers with experts; the others are dense."""
        if not self.experts:
            return 0
        by_layer = self.keys.get("moe_layer_freq")
        if isinstance(by_layer, list):  # MiMo-V2: 1 where a layer has experts
            return sum(bool(has_experts) for has_experts in by_layer)
        first_dense = self.number("first_k_dense_replace", default=0)
        every = max(1, self.number("decoder_sparse_step", "moe_layer_freq", default=1))
        dense = self.keys.get("mlp_only_layers") or []
        layers = range(first_dense, self.number("num_hidden_layers"))
        offset = 1 if "decoder_sparse_step" in self.keys else 0  # Qwen counts layers from 1, DeepSeek from 0
        return sum((layer + offset) % every == 0 and layer not in dense for layer in layers)
