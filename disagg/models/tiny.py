"""Models of a few kilobytes a layer with random weights, in real architectures, for fast tests of real engines.

Way:   make-tiny -> [tiny] -> tiny_weights.py in a process of its own -> $DISAGG_CACHE/models/tiny-KIND
Owns:  nothing; the tokenizer is that of smollm2, which has to be fetched
Fails: StartError for an unknown kind, a folder that holds something else, a tokenizer that is not there
"""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from disagg.errors import StartError
from disagg.models.catalogue import KINDS, SMOLLM2, model_folder
from disagg.models.fetch import RECIPE, Tell, new_folder, sole_maker
from disagg.models.manifest import damage, write_manifest
from disagg.models.resolve import resolve_model
from disagg.models.workshop import run_program


def make_tiny(kind: str, folder: Path | None = None, tell: Tell = lambda step, part: None) -> Path:
    """Makes `kind` in `folder` (default: the cache, under the name tiny-KIND); a good one there is left as it is."""
    if kind not in KINDS:
        near = get_close_matches(kind, KINDS, 1)
        would_do = f"did you mean {near[0]}?" if near else f"known: {', '.join(KINDS)}"
        raise StartError(f"tiny model {kind}", "is not a known kind", would_do)
    folder = model_folder(f"tiny-{kind}") if folder is None else folder.absolute()
    with sole_maker(f"tiny-{kind}", tell):
        if folder.exists() and damage(folder, recipe=RECIPE) is None:
            return folder
        if folder.exists() and any(folder.iterdir()) and not folder.is_relative_to(model_folder("")):
            raise StartError(str(folder), "is not empty", "give a folder that is empty or does not exist")
        tokenizer = resolve_model(SMOLLM2.name)
        if (wrong := damage(tokenizer, recipe=RECIPE)) is not None:
            would_do = f"run `disagg model get {SMOLLM2.name}`"
            raise StartError(f"tiny model {kind}", f"it takes the tokenizer of {tokenizer}, and {wrong}", would_do)
        tell("making random weights", None)
        with new_folder(folder) as unfinished:
            run_program(f"tiny model {kind}", "tiny_weights.py", kind, str(tokenizer), str(unfinished))
            write_manifest(unfinished, {"kind": kind, "tokenizer": SMOLLM2.name, "recipe": RECIPE, "seed": 0})
    return folder
