"""A LoRA adapter of random weights, as PEFT writes one. A program of its own:
`adapter_weights.py MODEL_FOLDER FOLDER RANK MODULES SPREAD SEED`.

Way:   random_adapter -> [adapter_weights]
In:    MODULES, as q_proj,v_proj: each weight of the model with such a name gets a part; SPREAD: of the parts' numbers
Alone: as tiny_weights.py, so nothing of disagg is imported here
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

CONFIG = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "bias": "none", "use_dora": False, "lora_dropout": 0.0}


def make(model: Path, folder: Path, rank: int, modules: list[str], spread: float, seed: int) -> None:
    """Raises ValueError where the model has none of these modules."""
    from safetensors import safe_open
    from safetensors.numpy import save_file

    shapes: dict[str, tuple[int, int]] = {}
    for file in sorted(model.glob("*.safetensors")):
        with safe_open(file, framework="numpy") as weights:
            named = (name.removesuffix(".weight") for name in weights.keys())  # noqa: SIM118 - it is no mapping
            fit = [name for name in named if name.rpartition(".")[2] in modules]
            shapes |= {name: tuple(weights.get_slice(f"{name}.weight").get_shape()) for name in fit}
    if not shapes:
        raise ValueError(f"{model} has no weights of {', '.join(modules)} in .safetensors files")
    save_file(_parts(shapes, rank, spread, seed), folder / "adapter_model.safetensors")
    said = {**CONFIG, "r": rank, "lora_alpha": 2 * rank, "target_modules": modules}
    (folder / "adapter_config.json").write_text(json.dumps(said, indent=1))


def _parts(shapes: dict[str, tuple[int, int]], rank: int, spread: float, seed: int) -> dict[str, Any]:
    import numpy

    random, parts = numpy.random.default_rng(seed), {}
    for name, (wide, narrow) in sorted(shapes.items()):
        for part, shape in (("lora_A", (rank, narrow)), ("lora_B", (wide, rank))):
            numbers = random.standard_normal(shape, dtype=numpy.float32) * numpy.float32(spread)
            parts[f"base_model.model.{name}.{part}.weight"] = numbers
    return parts


if __name__ == "__main__":
    _model, _folder, _rank, _modules, _spread, _seed = sys.argv[1:]
    make(Path(_model), Path(_folder), int(_rank), _modules.split(","), float(_spread), int(_seed))
