"""Keys come from a file too, change with it while requests run, and expire."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from datetime import UTC, date, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
from scripted import ScriptedBackend, exchange, http_request, says, serving

from disagg.config.frontend import ApiKey, KeyLists
from disagg.errors import ConfigError, StartError
from disagg.frontend import key_sets as module
from disagg.frontend.app import Frontend
from disagg.frontend.key_limits import LimitedKey, Meters
from disagg.frontend.key_sets import KeyFile, KeySet, key_set
from disagg.frontend.keys import Caller, Keys, digest
from disagg.load import parse_config
from disagg.tokenizer.codec import Codec

FIRST, SECOND, ADMIN, NEXT, OWN = (f"{name}-key-0123456789" for name in ("first", "second", "admin", "next", "own"))
OF_THE_YAML = KeySet((OWN,))


def write(path: Path, text: str) -> Path:
    new = path.with_suffix(".new")
    new.write_text(text)
    new.chmod(0o600)
    new.rename(path)  # as Kubernetes and careful people do
    return path


async def status(frontend: Frontend, key: str, path: str = "/v1/models") -> int:
    request = http_request("GET", path, headers=[f"authorization: Bearer {key}"])
    return (await exchange(frontend.port, request)).status


async def test_a_key_that_is_taken_out_opens_nothing_from_then_on(codec: Codec, tmp_path: Path) -> None:
    path = write(tmp_path / "keys.yaml", f"api_keys: [{FIRST}]\nadmin_keys: [{ADMIN}]\n")
    keys = Keys()
    file = KeyFile(str(path), OF_THE_YAML, keys, Meters())
    async with serving(ScriptedBackend(says("Hi")), codec, keys=keys) as frontend:
        assert [await status(frontend, key) for key in (OWN, FIRST, SECOND)] == [200, 200, 401]
        assert [await status(frontend, key, "/disagg/status") for key in (ADMIN, FIRST)] == [200, 403]
        write(path, f"api_keys: [{SECOND}]\nadmin_keys: [{NEXT}]\n")
        file.look()
        assert [await status(frontend, key) for key in (OWN, FIRST, SECOND, ADMIN)] == [200, 401, 200, 401]
        operates = [await status(frontend, key, "/disagg/logs/prefill-0") for key in (NEXT, ADMIN, SECOND, OWN)]
        assert operates == [200, 401, 403, 403]


BAD = {
    "not there": None,
    "no YAML": "api_keys: [",
    "another key": "api_key: [x]",
    "too short": "api_keys: [short-secret]",
    "no list": "api_keys: a-short-secret-that-is-no-list",
    "of another kind": "api_keys: [[short-secret-0123456789]]",
    "text alone": "short-secret-0123456789",
    "a blank": 'api_keys: ["short-secret with blanks"]',
    "twice": f"api_keys: [{FIRST}, {FIRST}]",
    "that of the YAML": f"api_keys: [{OWN}]",
    "an admin's": f"api_keys: [{FIRST}]\nadmin_keys: [{FIRST}]",
    "an alias": "api_keys: [*short-secret-0123456789]",
    "a tag": "api_keys: [!short-secret-0123456789]",
    "no moment": f"api_keys: [{{key: {FIRST}, expires: soon}}]",
}


@pytest.mark.parametrize("text", BAD.values(), ids=BAD)
def test_a_file_that_cannot_be_used_changes_nothing(
    text: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, keys = write(tmp_path / "keys.yaml", f"api_keys: [{FIRST}]\n"), Keys()
    file = KeyFile(str(path), OF_THE_YAML, keys, Meters())
    before = list(keys._digests)
    if text is None:
        path.unlink()
    else:
        write(path, text)
    file.look()
    assert keys._digests == before
    (record,) = caplog.records
    assert (record.levelno, str(path) in record.getMessage()) == (logging.ERROR, True)
    assert not any(secret in caplog.text for secret in ("short-secret", FIRST, OWN))
    file.look()
    assert len(caplog.records) == 1, "it is told once"
    with pytest.raises(StartError) as refused:
        KeyFile(str(path), OF_THE_YAML, Keys(), Meters())
    assert "short-secret" not in str(refused.value)


def test_the_last_api_key_cannot_vanish(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Then everybody might use the model."""
    path, keys = write(tmp_path / "keys.yaml", f"api_keys: [{FIRST}]\n"), Keys()
    file = KeyFile(str(path), KeySet(), keys, Meters())
    for text in ("", f"admin_keys: [{ADMIN}]\n"):
        write(path, text)
        file.look()
        assert "everybody might use the model" in caplog.records[-1].getMessage()
        assert keys._digests == [digest(FIRST.encode())]


def test_nor_can_the_last_admin_key(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Then every client on this machine might operate it."""
    path, keys = write(tmp_path / "keys.yaml", f"api_keys: [{FIRST}]\nadmin_keys: [{ADMIN}]\n"), Keys()
    file = KeyFile(str(path), KeySet(), keys, Meters())
    write(path, f"api_keys: [{SECOND}]\n")
    file.look()
    assert "clients might operate it" in caplog.records[-1].getMessage()
    assert (keys._digests, keys._admin_digests) == ([digest(FIRST.encode())], [digest(ADMIN.encode())])
    KeyFile(str(path), KeySet(), Keys(), Meters())  # where there was none, none is needed


@pytest.mark.parametrize(("mode", "told"), [(0o644, "chmod o-r"), (0o620, "chmod g-w"), (0o640, "")])
def test_a_file_for_others_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: int, told: str) -> None:
    path = write(tmp_path / "keys.yaml", f"api_keys: [{FIRST}]\n")
    path.chmod(mode)
    KeyFile(str(path), KeySet(), Keys(), Meters())
    assert told in caplog.text
    assert bool(caplog.text) == bool(told)


def test_a_file_of_another_user_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "keys.yaml", f"api_keys: [{FIRST}]\n")
    monkeypatch.setattr(module, "ROOT", -1)
    monkeypatch.setattr("os.geteuid", lambda: path.stat().st_uid + 1)
    KeyFile(str(path), KeySet(), Keys(), Meters())
    assert "another user's" in caplog.text


def test_what_everybody_may_write_is_not_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, keys = write(tmp_path / "keys.yaml", f"api_keys: [{FIRST}]\n"), Keys()
    file = KeyFile(str(path), KeySet(), keys, Meters())
    write(path, f"api_keys: [{SECOND}]\n").chmod(0o602)
    file.look()
    assert "chmod o-w" in caplog.text
    assert keys._digests == [digest(FIRST.encode())]
    path.chmod(0o600)
    file.look()
    assert keys._digests == [digest(SECOND.encode())]


def test_a_file_that_is_gone_while_it_is_looked_at(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, keys = write(tmp_path / "keys.yaml", f"api_keys: [{FIRST}]\n"), Keys()
    file = KeyFile(str(path), KeySet(), keys, Meters())
    write(path, f"api_keys: [{SECOND}]\n")

    def stale(_: object) -> None:
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(module, "os", SimpleNamespace(**{**vars(os), "stat": stale, "fstat": stale}))
    file.look()
    assert keys._digests == [digest(FIRST.encode())]
    assert "keys stay as they were" in caplog.text


def test_limits_of_a_key_that_stays_go_on_counting(tmp_path: Path) -> None:
    one = f"{{key: {FIRST}, name: one, requests_per_minute: 2}}"
    path, meters = write(tmp_path / "keys.yaml", f"api_keys: [{one}]\n"), Meters()
    file = KeyFile(str(path), KeySet(), Keys(), meters)
    meter = meters.of(digest(FIRST.encode()))
    assert meter is not None
    meter.begin()
    write(path, f"api_keys: [{one}, {{key: {SECOND}, name: two, concurrent: 1}}]\n")
    file.look()
    assert meters.of(digest(FIRST.encode())) is meter
    assert meters.of(digest(SECOND.encode())) is not None
    write(path, f"api_keys: [{one.replace('2}', '3}')}]\n")
    file.look()
    changed = meters.of(digest(FIRST.encode()))
    assert meters.of(digest(SECOND.encode())) is None
    assert changed is not meter
    assert changed is not None
    assert changed.key.requests_per_minute == 3


def test_a_key_is_the_same_wherever_in_the_list_it_is(tmp_path: Path) -> None:
    one, two = (f"{{key: {key}, requests_per_minute: 2}}" for key in (FIRST, SECOND))
    admins = f"admin_keys: [{ADMIN}, {NEXT}]\n"
    path, keys, meters = write(tmp_path / "keys.yaml", f"api_keys: [{one}, {two}]\n{admins}"), Keys(), Meters()
    file = KeyFile(str(path), KeySet(), keys, meters)
    owner, admin = digest(SECOND.encode()), Caller(digest(NEXT.encode()))
    meter = meters.of(owner)
    assert meter is not None
    meter.begin()
    names = [keys.name_of(Caller(owner)), keys.name_of(admin)]
    assert names == [meter.key.name, f"admin-key-{admin.owner.hex()[:8]}"] == [f"key-{owner.hex()[:8]}", names[1]]
    write(path, f"api_keys: [{two}]\nadmin_keys: [{NEXT}]\n")
    file.look()
    assert meters.of(owner) is meter
    assert [keys.name_of(Caller(owner)), keys.name_of(admin)] == names
    write(path, f"api_keys: [{two.replace('requests', 'name: two, requests')}]\nadmin_keys: [{NEXT}]\n")
    file.look()
    assert meters.of(owner) is meter
    assert meters.told["disagg_key_requests"] == {("two",): 1}


async def test_it_is_looked_at_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("disagg.frontend.key_sets.LOOK_S", 0.01)
    path, keys = write(tmp_path / "keys.yaml", f"api_keys: [{FIRST}]\n"), Keys()
    following = asyncio.create_task(KeyFile(str(path), KeySet(), keys, Meters()).follow())
    write(path, f"api_keys: [{SECOND}]\n")
    async with asyncio.timeout(30):
        while keys._digests != [digest(SECOND.encode())]:
            await asyncio.sleep(0.01)
    following.cancel()


async def test_an_expired_key_opens_nothing_and_is_told_why(codec: Codec) -> None:
    keys = Keys()
    over = LimitedKey(key=FIRST, name="over", expires_s=1.0)
    keys.hold((), [over, LimitedKey(key=SECOND, name="good", expires_s=4e9)], ())
    async with serving(ScriptedBackend(says("Hi")), codec, keys=keys) as frontend:
        answer = await exchange(
            frontend.port, http_request("GET", "/v1/models", headers=[f"authorization: Bearer {FIRST}"])
        )
        assert (answer.status, answer.json["error"]["code"]) == (401, "invalid_api_key")
        assert "expired" in answer.json["error"]["message"]
        assert await status(frontend, SECOND) == 200


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        (date(2027, 1, 31), datetime(2027, 1, 31, tzinfo=UTC)),
        ("2027-01-31", datetime(2027, 1, 31, tzinfo=UTC)),
        ("2027-01-31T19:00:00+01:00", datetime(2027, 1, 31, 18, tzinfo=UTC)),
        (datetime(2027, 1, 31, 18), datetime(2027, 1, 31, 18, tzinfo=UTC)),
    ],
)
def test_a_moment(said: object, meant: datetime) -> None:
    key = ApiKey.model_validate({"key": FIRST, "expires": said})
    (limited,) = key_set(KeyLists(api_keys=(key,))).limited
    assert limited.expires_s == meant.timestamp()


def test_in_the_yaml() -> None:
    yaml = "version: 1\nmodel: {path: m}\nprefill: {}\ndecode: {}\n"
    security = f"security: {{keys_file: /k.yaml, api_keys: [{{key: {FIRST}, expires: 2027-01-31T18:00:00Z}}]}}\n"
    found = parse_config(yaml + security).security
    assert found.keys_file == "/k.yaml"
    assert found.api_keys[0].expires == datetime(2027, 1, 31, 18, tzinfo=UTC)
    with pytest.raises(ConfigError, match="moment"):
        parse_config(yaml + f"security: {{api_keys: [{{key: {FIRST}, expires: 7}}]}}\n")
