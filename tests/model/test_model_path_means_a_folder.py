"""What `model.path` may be, and what is said when it is none of that."""

from pathlib import Path

import pytest

from disagg.errors import StartError
from disagg.models.catalogue import model_folder
from disagg.models.manifest import write_manifest
from disagg.models.resolve import resolve_model


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISAGG_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def _complete_model(name: str) -> Path:
    folder = model_folder(name)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    write_manifest(folder, {})
    return folder


def test_a_folder_with_a_config_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    assert resolve_model("./mine") == tmp_path / "mine"
    assert resolve_model(str(tmp_path / "mine")) == tmp_path / "mine"


def test_a_fetched_name_and_a_tiny_one_mean_their_folders() -> None:
    for name in ("smollm2", "tiny-qwen3"):
        folder = _complete_model(name)
        assert resolve_model(name) == folder


@pytest.mark.parametrize(
    ("path", "revision", "said"),
    [
        ("smollm2", None, "has not been fetched; run `disagg model get smollm2`"),
        ("smolm2", None, "did you mean smollm2?"),
        ("tiny-dsv3", None, "has not been made; run `disagg model make-tiny dsv3`"),
        ("/nowhere/at/all", None, "is no folder here"),
        ("../nowhere", None, "is no folder here"),
        ("", None, "has no config.json"),  # the folder one is in
        ("three/part/name", None, "is no folder here"),
        ("empty", None, "has no config.json"),
        ("smollm2", "main", "only a hub id has revisions"),
    ],
)
def test_what_cannot_be_used_is_named_with_what_would_do(
    tmp_path: Path, path: str, revision: str | None, said: str
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(StartError) as caught:
        resolve_model(path, revision)
    assert said in str(caught.value)


def test_a_cut_file_of_a_fetched_model_is_noticed() -> None:
    folder = _complete_model("smollm2")
    (folder / "config.json").write_text("")
    with pytest.raises(StartError, match=r"config\.json has 0 bytes, not 2; run `disagg model get smollm2`"):
        resolve_model("smollm2")


def test_a_hub_id_goes_to_the_hub_with_its_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    asked: list[tuple[str, str | None]] = []

    def snapshot_download(hub_id: str, revision: str | None = None) -> str:
        asked.append((hub_id, revision))
        if revision == "gone":
            raise OSError("no such revision\nand a long story")
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    assert resolve_model("owner/model-1.5B", "abc") == tmp_path
    assert asked == [("owner/model-1.5B", "abc")]
    with pytest.raises(StartError, match="cannot be had from the hub: no such revision;"):
        resolve_model("owner/model-1.5B", "gone")


def test_a_machine_that_does_not_reach_the_hub_is_told_apart_from_a_wrong_id(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub = pytest.importorskip("huggingface_hub")
    from huggingface_hub.errors import LocalEntryNotFoundError

    def snapshot_download(hub_id: str, revision: str | None = None) -> str:
        raise LocalEntryNotFoundError("Got: ConnectError: Name or service not known")

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    with pytest.raises(StartError) as caught:
        resolve_model("owner/model")
    assert "is not in this machine's Hugging Face cache, and the hub cannot be asked: Got: Conn" in str(caught.value)
    assert "let this machine reach it, or give a folder" in str(caught.value)
