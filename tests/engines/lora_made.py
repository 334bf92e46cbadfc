"""LoRA adapters made by hand for a small model, as PEFT writes them, and what the model says with each merged in.

In a process of its own, as transformers needs one: `make(...)` runs this file as a program.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from disagg.cpu_profile.paths import standin_environment

ATTENTION, MLP = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")
CONFIG = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "bias": "none", "use_dora": False, "lora_dropout": 0.0}
SPREAD = 0.3  # of its weights: so much that other tokens come of it
MADE_S = 300.0  # on a busy machine

Answers = dict[str, list[list[int]]]  # adapter, "" for none -> the tokens for each prompt


def make(
    model: Path,
    folder: Path,
    adapters: dict[str, tuple[int, tuple[str, ...]]],
    prompts: list[list[int]],
    new_tokens: int,
) -> Answers:
    """Writes each adapter (its rank, what it changes) to folder/NAME. Returns greedy answers of transformers."""
    asked = {"model": str(model), "folder": str(folder), "adapters": adapters, "prompts": prompts, "new": new_tokens}
    done = subprocess.run(
        [sys.executable, "-P", __file__],
        input=json.dumps(asked).encode(),
        env=standin_environment(os.environ) | {"HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        timeout=MADE_S,
        check=True,
    )
    answers: Answers = json.loads(done.stdout)
    return answers


def _main() -> None:
    import torch
    from transformers import AutoModelForCausalLM

    asked = json.load(sys.stdin)
    model = AutoModelForCausalLM.from_pretrained(asked["model"], dtype=torch.float32)
    weights = dict(model.named_parameters())

    def answers() -> list[list[int]]:
        return [_greedy(model, prompt, asked["new"]) for prompt in asked["prompts"]]

    found = {"": answers()}
    for name, (rank, modules) in asked["adapters"].items():
        linears = {each: weight for each, weight in weights.items() if each.split(".")[-2] in modules}
        added = _write(Path(asked["folder"]) / name, rank, modules, linears)
        with torch.no_grad():
            before = {each: weights[each].clone() for each in added}
            for each, more in added.items():
                weights[each] += more
            found[name] = answers()
            for each, was in before.items():
                weights[each].copy_(was)
    json.dump(found, sys.stdout)


def _write(folder: Path, rank: int, modules: list[str], linears: dict[str, Any]) -> dict[str, Any]:
    """Returns what it adds to each weight. Random, from a seed that follows from its name."""
    import torch
    from safetensors.torch import save_file

    random = torch.Generator().manual_seed(sum(folder.name.encode()))
    tensors, added, alpha = {}, {}, 2 * rank
    for name, weight in linears.items():
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
    return added


def _greedy(model: Any, prompt: list[int], new_tokens: int) -> list[int]:
    import torch

    ids = torch.tensor([prompt])
    with torch.no_grad():
        for _ in range(new_tokens):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
    made: list[int] = ids[0, len(prompt) :].tolist()
    return made


if __name__ == "__main__":
    _main()
