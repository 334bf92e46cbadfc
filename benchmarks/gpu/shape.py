"""A model of a real one's shape with random weights: what is measured is time, not text.

Way:   compare, burst -> [make_shape] -> a folder with config.json and tokenizer.json, no weights (load_format: dummy)
       SGLang plugin -> [activate] -> in engines with BENCH_ONE_LAYER=1 all layers use the first one's weights
Why:   six engines with 16 GB of weights each do not fit one card beside their KV. One layer of 8B is 386 MB, seven
       times the L2 of an H200: each step reads as many bytes as ever, and SGLang's dummy weights are the same in every
       layer anyway (one seed). The KV stays each layer's own
Text:  every token is one short ASCII word, so that each step of a stream is one event with text, whatever is chosen
"""

from __future__ import annotations

import itertools
import json
import os
import string
import sys
from pathlib import Path
from typing import Any

ONE_LAYER_VARIABLE = "BENCH_ONE_LAYER"
QWEN3_8B: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "torch_dtype": "bfloat16", "vocab_size": 151936,
    "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 40960, "rope_theta": 1000000,
    "rms_norm_eps": 1e-6, "hidden_act": "silu", "attention_bias": False, "tie_word_embeddings": False,
    "bos_token_id": 1, "eos_token_id": 2, "use_cache": True,
}  # fmt: skip
TINY = QWEN3_8B | {
    "vocab_size": 4096, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "torch_dtype": "float32",
}  # fmt: skip
SHAPES = {"qwen3-8b": QWEN3_8B, "tiny": TINY}


def make_shape(name: str, folder: Path) -> Path:
    """`folder`, filled if it is not yet."""
    if not (folder / "config.json").exists():
        config = SHAPES[name]
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / "tokenizer.json", _tokenizer(config["vocab_size"]))
        _write(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
        _write(folder / "generation_config.json", {"eos_token_id": config["eos_token_id"]})
        _write(folder / "config.json", config)
    return folder


def _tokenizer(size: int) -> dict[str, Any]:
    letters = itertools.product(string.ascii_lowercase, repeat=4)
    words = ["Ġ" + "".join(four) for four in itertools.islice(letters, size)]  # Ġ: a space, in ByteLevel's letters
    return {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "WordLevel", "vocab": {word: i for i, word in enumerate(words)}, "unk_token": words[0]},
    }


def _write(path: Path, tree: dict[str, Any]) -> None:
    path.write_text(json.dumps(tree), encoding="utf-8")


def activate() -> None:
    if os.environ.get(ONE_LAYER_VARIABLE) != "1" or "sglang.srt.managers.scheduler" not in sys.modules:
        return
    from sglang.srt.models.qwen3 import Qwen3DecoderLayer

    init = Qwen3DecoderLayer.__init__
    first: list[Any] = []

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        first.append(self)
        for ours, theirs in zip(self.modules(), first[0].modules(), strict=True):
            ours._parameters.update(theirs._parameters)
        del first[1:]

    Qwen3DecoderLayer.__init__ = __init__
    sys.stderr.write(f"{ONE_LAYER_VARIABLE}: all layers use the weights of the first\n")
