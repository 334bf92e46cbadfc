"""SmolLM2, taught the answers to what SGLang's own test kits ask: `taught_model()` -> its folder, made once.

The kits test a server, and take a model that can answer for granted. One of 135M parameters cannot: it ends neither a
string nor a number, and says no single word when asked for one. So its last layers learn the kits' own questions, until
each token of the answers is all but certain; beside them, what it says to other texts is kept as it was. Nothing of the
kits or of the server changes, and no model stands in for what the server does: a grammar, a stop, a stream.

In a process of its own, as transformers needs one: this file is also that program.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

from sglang_kit import of_kit

from disagg.cpu_profile.paths import standin_environment
from disagg.models.catalogue import SMOLLM2, model_folder
from disagg.models.fetch import fetch_model, new_folder, sole_maker
from disagg.models.manifest import MANIFEST, damage, write_manifest

NAME = "smollm2-taught"
WEIGHTS = "model.safetensors"
TEMPLATE = Path(__file__).with_name("taught.jinja")
"""What it is taught with, and is to be served with: SmolLM2's own has a system message where none is sent, and the kits
want a prompt with one to be longer than one without."""
MADE_S = 400.0  # on a busy machine; some 30 s of one core

LAST_LAYERS = 2  # of 30, that learn
STEPS_MAX = 60
RATE = 1e-3
SURE = 0.1  # nats that the least certain token of all answers may still cost
PERSON = '{"name": "Alice", "age": 30, "city": "Paris"}'
CITY = '{"name": "Paris", "population": 2100000}'
LOG_LINE = "[2024-01-01T12:00:00Z] INFO: System.process - Operation completed successfully"
KEPT = (
    "<|im_start|>user\nDescribe Roger Federer.<|im_end|>\n<|im_start|>assistant\nRoger Federer is a tennis player from "
    "Switzerland. He won many tournaments, and people like how he plays. He has four children.<|im_end|>\n",
    "The capital of France is a large city on a river. Once upon a time, there was a king who lived in it with his "
    'daughter. One day she asked him, "What is on the other side?" He did not know, so they built a boat to see.\n\n',
    "<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n<|im_start|>assistant\n2 + 2 is 4.<|im_end|>\n<|im_start|>user\n"
    "Say hi<|im_end|>\n<|im_start|>assistant\nHello! How can I help you today?<|im_end|>\n",
)


def taught_model() -> Path:
    """Made anew when this file, its template, or the model that it begins with, has changed."""
    base, folder = fetch_model(SMOLLM2.name), model_folder(NAME)
    recipe = zlib.crc32(Path(__file__).read_bytes() + TEMPLATE.read_bytes() + (base / MANIFEST).read_bytes())
    with sole_maker(NAME, lambda step, part: None):
        if damage(folder, recipe=recipe) is not None:
            with new_folder(folder) as unfinished:
                _teach(base, unfinished)
                write_manifest(unfinished, {"base": SMOLLM2.name, "recipe": recipe})
    return folder


def _teach(base: Path, folder: Path) -> None:
    subprocess.run(
        [sys.executable, __file__, str(base), str(folder)],
        env=standin_environment(os.environ) | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
        timeout=MADE_S,
        check=True,
    )


def answers(tokenizer: Any) -> list[tuple[str, str]]:
    """What a server is asked for, as the model reads it, and what the model is to say before it ends."""
    json_kit, stress_kit = of_kit("json_constrained_kit"), of_kit("basic_scheduler_stress_kit")
    schema = json_kit.JSONConstrainedMixin.json_schema
    introduce = f"Introduce the capital of France. Return in a JSON format. The JSON Schema is: {json.dumps(schema)}"
    chat = [{"role": "system", "content": "You are a helpful AI assistant"}, {"role": "user", "content": introduce}]
    return [
        ("Generate a log entry:", LOG_LINE),
        ("Generate a simple JSON with name, age, and city:", PERSON),
        (introduce, CITY),
        (
            tokenizer.apply_chat_template(
                chat, chat_template=TEMPLATE.read_text(), tokenize=False, add_generation_prompt=True
            ),
            CITY,
        ),
        *(
            (stress_kit._CONCURRENT_PREFIX + question, f" {answer.capitalize()}\n")
            for question, answer in stress_kit._CONCURRENT_QA
        ),
    ]


def _main() -> None:
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base, folder = Path(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)  # beside other tests, two threads wait for each other most of the time
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).requires_grad_(False)
    learned = _learned(model, AutoTokenizer.from_pretrained(base))
    for file in base.iterdir():
        if file.name not in (WEIGHTS, MANIFEST):
            shutil.copy(file, folder)
    weights = load_file(base / WEIGHTS)
    changed = {name: value.detach().to(weights[name].dtype) for name, value in learned.items()}
    save_file(weights | changed, folder / WEIGHTS, metadata={"format": "pt"})


def _learned(model: Any, tokenizer: Any) -> dict[str, Any]:
    """The parameters that learned, by name.

    All texts are one row of tokens, each seeing those of its own text alone; what the lower layers make of them is
    computed once. `wanted` is a distribution for each position that counts: an answer's next token, or what the model
    said before.
    """
    import torch

    said = [
        (_ids(tokenizer, asked), [*_ids(tokenizer, answer), tokenizer.eos_token_id])
        for asked, answer in answers(tokenizer)
    ]
    texts = [asked + answer for asked, answer in said] + [_ids(tokenizer, text) for text in KEPT]
    ids = torch.tensor([each for text in texts for each in text])
    of_text = torch.tensor([number for number, text in enumerate(texts) for _ in text])
    positions = torch.cat([torch.arange(len(text)) for text in texts])
    sees = (of_text[:, None] == of_text) & (torch.arange(len(ids))[:, None] >= torch.arange(len(ids)))
    next_ids = torch.tensor([each for asked, answer in said for each in [-1] * (len(asked) - 1) + answer + [-1]])
    taught = torch.nn.functional.pad(next_ids, (0, len(ids) - len(next_ids)), value=-1) >= 0
    counts = taught | (of_text >= len(said))

    layers, norm = model.model.layers, model.model.norm
    lower, upper = layers[:-LAST_LAYERS], layers[-LAST_LAYERS:]

    def through(some_layers: Any, then: Any, states: Any) -> Any:
        model.model.layers, model.model.norm = some_layers, then
        mask = sees[None, None]
        return model.model(
            inputs_embeds=states, attention_mask=mask, position_ids=positions[None], use_cache=False
        ).last_hidden_state

    def next_logprobs() -> Any:
        return model.lm_head(through(upper, norm, below)[0, counts]).log_softmax(-1)

    with torch.no_grad():
        below = through(lower, torch.nn.Identity(), model.model.embed_tokens(ids[None]))
        wanted = next_logprobs().exp()
    wanted[taught[counts]] = torch.nn.functional.one_hot(next_ids[next_ids >= 0], wanted.shape[1]).float()

    upper.requires_grad_(True)
    optimizer = torch.optim.AdamW(upper.parameters(), lr=RATE, weight_decay=0.0)
    for _ in range(STEPS_MAX):
        losses = -(wanted * next_logprobs()).sum(-1)
        if losses[taught[counts]].max() < SURE:
            model.model.layers = layers
            return {name: value for name, value in model.named_parameters() if value.requires_grad}
        optimizer.zero_grad()
        losses.mean().backward()
        optimizer.step()
    raise SystemExit(f"not learned in {STEPS_MAX} steps")


def _ids(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


if __name__ == "__main__":
    _main()
