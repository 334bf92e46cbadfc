"""LoRA adapters of random weights, to try adapters out: they change what a model says, and teach it nothing.

Way:   make-adapter -> [random_adapter] -> adapter_weights.py in a process of its own -> a folder, as PEFT writes it
Fails: StartError for a model that is not there, or has no such modules, and for a folder that holds something
"""

from __future__ import annotations

from pathlib import Path

from disagg.errors import StartError
from disagg.models.fetch import new_folder, sole_maker
from disagg.models.resolve import resolve_model
from disagg.models.workshop import run_program

SPREAD = 0.06  # of SmolLM2: other words, and words


def make_adapter(model: str, folder: Path, rank: int, modules: tuple[str, ...], seed: int) -> Path:
    """`model`: a folder, a name or a hub id, as in `model.path`."""
    weights, folder = resolve_model(model), folder.absolute()
    with sole_maker(f"adapter-{folder.name}", lambda *_: None):
        if folder.exists():
            raise StartError(str(folder), "is there already", "give a folder that does not exist")
        with new_folder(folder) as unfinished:
            said = (str(weights), str(unfinished), str(rank), ",".join(modules), str(SPREAD), str(seed))
            run_program(f"adapter for {model}", "adapter_weights.py", *said)
    return folder
