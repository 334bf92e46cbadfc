"""What was published for frontends, opened and made to fit another host; and what is said where that cannot be."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from disagg.coordinator.limits import Limits
from disagg.errors import StartError
from disagg.frontend import published as publishing
from disagg.frontend.on_host import OnHost, on_this_host
from disagg.frontend.published import Published, opened, published, sealed
from disagg.frontend.spec import FrontendSpec, ModelSpec
from disagg.frontend.tls import TlsSpec
from disagg.models.digest import text_digest
from disagg.registry.keys import Keys
from disagg.registry.records import SealedSpec
from disagg.registry.sealed import Secret
from disagg.registry.shared import FileAt, Shared

KEYS = Keys("prod", "chat")
SECRET = Secret("0123456789abcdef" * 4, KEYS)
SHARED = Shared(FileAt("/registry"), KEYS)


def folder_of(parent: Path, tokenizer: str = "{}") -> Path:
    parent.mkdir()
    (parent / "config.json").write_text("{}")
    (parent / "tokenizer.json").write_text(tokenizer)
    return parent


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return folder_of(tmp_path / "m")


def what(model: Path, **more: object) -> Published:
    spec = FrontendSpec(
        registry="",
        control="127.0.0.1:7",
        shared=Shared(FileAt("/of/the/controller"), KEYS),
        host="127.0.0.1",
        port=8000,
        body_limit_bytes=1 << 20,
        models=(ModelSpec(path=str(model), name="m", said_path="no-such-name", digest=text_digest(model)),),
        number=0,
        stop_s=1.0,
        limits=Limits(),
        api_keys=("a-key-0123456789",),
        peer_host="127.0.0.1",
    )
    return published(replace(spec, **more), 10.0, origins_said=False)


def fitted(what: Published, said: OnHost | None = None) -> FrontendSpec:
    return on_this_host(what, said or OnHost(), SHARED, "10.0.0.9", shares_port=False)


def test_keys_in_a_file_are_keys(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    bare, file = what(model, api_keys=()), model / "keys.yaml"
    file.touch()
    fitted(bare, OnHost(host="0.0.0.0", keys_file=str(file)))
    assert not caplog.text
    fitted(bare, OnHost(host="0.0.0.0"))
    assert "without keys" in caplog.text


def test_what_is_opened_is_what_was_published_without_addresses_of_the_controller(model: Path) -> None:
    told = opened(sealed(what(model), SECRET), SECRET)
    assert told == what(model)
    assert (told.spec.control, told.spec.shared) == ("", None)
    spec = fitted(told)
    assert (spec.shared, spec.peer_host, spec.has_peers, spec.host, spec.port) == (
        SHARED,
        "10.0.0.9",
        True,
        "127.0.0.1",
        8000,
    )
    assert spec.models[0].path == str(model)


def test_host_and_port_are_this_hosts_and_pages_of_others_are_not_let_in_by_it(model: Path) -> None:
    loopback = what(model, origins=("*",))
    assert fitted(loopback).origins == ("*",)
    spec = fitted(loopback, OnHost(host="0.0.0.0", port=80))
    assert (spec.host, spec.port, spec.origins) == ("0.0.0.0", 80, ())
    said = replace(loopback, origins_said=True)
    assert fitted(said, OnHost(host="0.0.0.0")).origins == ("*",)


def test_an_open_door_is_told(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    fitted(what(model), OnHost(host="0.0.0.0"))
    assert not caplog.messages
    fitted(what(model, api_keys=()), OnHost(host="0.0.0.0"))
    assert "open beyond this machine, without keys" in caplog.text


def test_a_model_lies_where_this_host_has_it(model: Path, tmp_path: Path) -> None:
    told = what(model)
    moved = model.rename(tmp_path / "moved")
    with pytest.raises(StartError, match="and not here: is no folder here") as raised:
        fitted(told)
    assert "say --model m=PATH" in str(raised.value)
    assert fitted(told, OnHost(models={"m": str(moved)})).models[0].path == str(moved)
    with pytest.raises(StartError, match="x is no model of the deployment"):
        fitted(told, OnHost(models={"x": str(moved)}))


def test_a_model_with_other_texts_is_refused(model: Path, tmp_path: Path) -> None:
    other = folder_of(tmp_path / "other", '{"another": 1}')
    with pytest.raises(StartError, match="has other texts"):
        fitted(what(model), OnHost(models={"m": str(other)}))


def test_no_model_is_needed_where_engines_read_texts(tmp_path: Path) -> None:
    of_hosts = ModelSpec(path="/nowhere", name="m", said_path="no-such-name", tokenization="engine")
    told = what(folder_of(tmp_path / "m"), models=(of_hosts,))
    assert fitted(told).models == (of_hosts,)


def test_files_of_tls_are_this_hosts(model: Path) -> None:
    told = what(model, tls=TlsSpec("/c", "/k"))
    assert fitted(told).tls == TlsSpec("/c", "/k")
    assert fitted(told, OnHost(tls_cert="/here")).tls == TlsSpec("/here", "/k")
    with pytest.raises(StartError, match="the deployment has no TLS"):
        fitted(what(model), OnHost(tls_cert="/here"))


def test_a_file_of_keys_is_this_hosts(model: Path, tmp_path: Path) -> None:
    theirs, here = tmp_path / "theirs", tmp_path / "here"
    told = what(model, keys_file=str(theirs))
    here.touch()
    assert fitted(told, OnHost(keys_file=str(here))).keys_file == str(here)
    with pytest.raises(StartError, match=r"--keys-file: .*theirs is no file here"):
        fitted(told)
    theirs.touch()
    assert fitted(told).keys_file == str(theirs)


def test_another_version_is_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of_today = sealed(what(model), SECRET)
    monkeypatch.setattr(publishing, "VERSION", "9.9")
    with pytest.raises(StartError, match=r"runs disagg .*, and this is 9\.9"):
        opened(of_today, SECRET)
    words = SealedSpec(version="9.9", sealed=SECRET.seal(msgspec.json.encode({"spec": {}})))
    with pytest.raises(StartError, match=r"another disagg 9\.9"):
        opened(words, SECRET)
