"""`model.path` of a configuration -> a folder that engines and the tokenizer can read.

Way:   config -> [resolve] -> engines' model_path, frontend's tokenizer
In:    a folder; a name of the catalogue that has been fetched; a hub id, with its revision
Fails: StartError, before anything has started
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from pathlib import Path

from disagg.errors import StartError
from disagg.models.catalogue import CATALOGUE, KINDS, model_folder
from disagg.models.manifest import MANIFEST, damage

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
NAME = re.compile(r"[\w][\w.-]*")


def resolve_model(path: str, revision: str | None = None) -> Path:
    folder = Path(path).expanduser()
    if folder.is_dir():
        return _usable(folder.absolute(), revision)
    if NAME.fullmatch(path) and (path in CATALOGUE or (model_folder(path) / MANIFEST).exists()):
        return _made_here(path, revision)
    if (kind := path.removeprefix("tiny-")) != path and kind in KINDS:
        raise StartError(f"model.path {path}", "has not been made", f"run `disagg model make-tiny {kind}`")
    if HUB_ID.fullmatch(path):
        return from_hub(path, revision)
    near = get_close_matches(path, CATALOGUE, 1)
    raise StartError(
        f"model.path {path}",
        "is no folder here, no model that `disagg model list` shows, and no hub id (owner/name)",
        f"did you mean {near[0]}?" if near else "give one of the three",
    )


def _usable(folder: Path, revision: str | None) -> Path:
    _no_revision(str(folder), revision)
    if not (folder / "config.json").is_file():
        raise StartError(f"model.path {folder}", "has no config.json", "give the folder that holds the model's files")
    return folder


def _made_here(name: str, revision: str | None) -> Path:
    _no_revision(name, revision)
    folder = model_folder(name)
    if not folder.exists():
        raise StartError(f"model.path {name}", "has not been fetched", f"run `disagg model get {name}`")
    wrong = damage(folder)
    if wrong is not None:
        again = f"disagg model get {name}" if name in CATALOGUE else f"disagg model make-tiny {name.partition('-')[2]}"
        raise StartError(f"model.path {name}", f"{folder} is damaged: {wrong}", f"run `{again}`")
    return folder


def _no_revision(path: str, revision: str | None) -> None:
    if revision is not None:
        what = f"model.revision is {revision}, but only a hub id has revisions"
        raise StartError(f"model.path {path}", what, "remove model.revision")


def from_hub(hub_id: str, revision: str | None) -> Path:
    """The hub model's folder in this machine's Hugging Face cache, after downloading the files that were missing."""
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError as error:
        what = "looks like a hub id, but huggingface_hub is not installed"
        raise StartError(f"model.path {hub_id}", what, "run `disagg setup`, or give a folder") from error
    try:
        return Path(snapshot_download(hub_id, revision=revision))
    except LocalEntryNotFoundError as error:
        what = f"is not in this machine's Hugging Face cache, and the hub cannot be asked: {_first_line(error)}"
        raise StartError(f"model.path {hub_id}", what, "let this machine reach it, or give a folder") from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        what = f"cannot be had from the hub: {_first_line(error)}"
        would_do = "check its id, its revision and your access (HF_TOKEN), or give a folder"
        raise StartError(f"model.path {hub_id}", what, would_do) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
