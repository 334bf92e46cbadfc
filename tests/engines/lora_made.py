"""LoRA adapters of random weights for a small model, and what the model says with each merged in: the tokens that
follow a prompt, and its vector.

In a process of its own, as transformers needs one: `make(...)` runs this file as a program.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from disagg.cpu_profile.paths import standin_environment
from disagg.models.adapter_weights import make as make_adapter

ATTENTION, MLP = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")
SPREAD = 0.3  # of its weights: so much that other tokens come of it
SCALE = 2  # lora_alpha / r
MADE_S = 300.0  # on a busy machine

Answers = dict[str, list[list[int]]]  # adapter, "" for none -> the tokens for each prompt


class Meant(NamedTuple):
    answers: Answers
    vectors: dict[str, list[list[float]]]  # adapter, "" for none -> the last hidden state, as a unit vector


def make(
    model: Path,
    folder: Path,
    adapters: dict[str, tuple[int, tuple[str, ...]]],
    prompts: list[list[int]],
    new_tokens: int,
) -> Meant:
    """Writes each adapter (its rank, what it changes) to folder/NAME. Returns what transformers makes of `prompts`."""
    asked = {"model": str(model), "folder": str(folder), "adapters": adapters, "prompts": prompts, "new": new_tokens}
    done = subprocess.run(
        [sys.executable, "-P", __file__],
        input=json.dumps(asked).encode(),
        env=standin_environment(os.environ) | {"HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        timeout=MADE_S,
        check=True,
    )
    return Meant(*json.loads(done.stdout))


def _main() -> None:
    import torch
    from transformers import AutoModelForCausalLM

    asked = json.load(sys.stdin)
    model = AutoModelForCausalLM.from_pretrained(asked["model"], dtype=torch.float32)
    weights = dict(model.named_parameters())

    answers, vectors = {}, {}

    def ask(name: str) -> None:
        answers[name] = [_greedy(model, prompt, asked["new"]) for prompt in asked["prompts"]]
        vectors[name] = [_vector(model.model, prompt) for prompt in asked["prompts"]]

    ask("")
    for name, (rank, modules) in asked["adapters"].items():
        added = _merged(Path(asked["folder"]) / name, rank, modules, Path(asked["model"]))
        with torch.no_grad():
            before = {each: weights[each].clone() for each in added}
            for each, more in added.items():
                weights[each] += more
            ask(name)
            for each, was in before.items():
                weights[each].copy_(was)
    json.dump([answers, vectors], sys.stdout)


def _merged(folder: Path, rank: int, modules: list[str], model: Path) -> dict[str, Any]:
    """Makes the adapter, from a seed that follows from its name. Returns what it adds to each weight."""
    from safetensors.torch import load_file

    folder.mkdir()
    make_adapter(model, folder, rank, modules, SPREAD, seed=sum(folder.name.encode()))
    parts = load_file(folder / "adapter_model.safetensors")
    names = [part.removesuffix(".lora_A.weight") for part in parts if part.endswith(".lora_A.weight")]
    return {
        f"{name.removeprefix('base_model.model.')}.weight": SCALE
        * parts[f"{name}.lora_B.weight"]
        @ parts[f"{name}.lora_A.weight"]
        for name in names
    }


def _greedy(model: Any, prompt: list[int], new_tokens: int) -> list[int]:
    import torch

    ids = torch.tensor([prompt])
    with torch.no_grad():
        for _ in range(new_tokens):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
    made: list[int] = ids[0, len(prompt) :].tolist()
    return made


def _vector(model: Any, prompt: list[int]) -> list[float]:
    import torch

    with torch.no_grad():
        last = model(torch.tensor([prompt])).last_hidden_state[0, -1]
    vector: list[float] = (last / last.norm()).tolist()
    return vector


if __name__ == "__main__":
    _main()
