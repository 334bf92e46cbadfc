"""LoRA adapters made by hand for a small model, as PEFT writes them, and what the model says with each merged in."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ATTENTION, MLP = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")
CONFIG = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "bias": "none", "use_dora": False, "lora_dropout": 0.0}
SPREAD = 0.3  # of its weights: so much that other tokens come of it


@dataclass
class Maker:
    """`model`: the model's folder."""

    model: Path
    weights: dict[str, dict[str, Any]] = field(default_factory=dict)  # adapter -> what it adds to each weight

    def make(self, folder: Path, rank: int, modules: tuple[str, ...]) -> Path:
        """Random, from a seed that follows from its name."""
        import torch
        from safetensors.torch import save_file

        random = torch.Generator().manual_seed(sum(folder.name.encode()))
        tensors, added, alpha = {}, {}, 2 * rank
        for name, weight in self._linears(modules):
            wide, narrow = weight.shape
            a = torch.randn(rank, narrow, generator=random) * SPREAD
            b = torch.randn(wide, rank, generator=random) * SPREAD
            of = f"base_model.model.{name.removesuffix('.weight')}"
            tensors |= {f"{of}.lora_A.weight": a, f"{of}.lora_B.weight": b}
            added[name] = alpha / rank * b @ a
        folder.mkdir()
        save_file(tensors, folder / "adapter_model.safetensors")
        said = {**CONFIG, "r": rank, "lora_alpha": alpha, "target_modules": list(modules)}
        (folder / "adapter_config.json").write_text(json.dumps(said))
        self.weights[folder.name] = added
        return folder

    def answer(self, adapter: str, prompt_ids: list[int], new_tokens: int) -> list[int]:
        """Greedy, of transformers, with the adapter's weights merged in; "": without any."""
        import torch

        model = self._model()
        with torch.no_grad():
            weights = dict(model.named_parameters())
            for name, added in self.weights[adapter].items() if adapter else ():
                weights[name] += added
            ids = torch.tensor([prompt_ids])
            mask = torch.ones_like(ids)
            made = model.generate(ids, attention_mask=mask, max_new_tokens=new_tokens, do_sample=False, eos_token_id=-1)
        answer: list[int] = made[0, len(prompt_ids) :].tolist()
        return answer

    def _linears(self, modules: tuple[str, ...]) -> list[tuple[str, Any]]:
        named = self._model().named_parameters()
        return [(name, weight) for name, weight in named if name.split(".")[-2] in modules]

    def _model(self) -> Any:
        import torch
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(str(self.model), dtype=torch.float32)
