"""The pinned engine profile, and when the stand-ins take part."""

import re
from pathlib import Path

import pytest

from disagg.config.find import find_config, shipped_names
from disagg.cpu_profile import profile
from disagg.errors import ConfigError, StartError


def test_every_line_is_one_exact_pin() -> None:
    lines = [line for line in profile.REQUIREMENTS.read_text().splitlines() if line and not line.startswith("#")]
    assert len(profile.pins()) == len(lines)
    names = [re.sub(r"[-_.]+", "-", name).lower() for name in profile.pins()]
    assert len(set(names)) == len(names)
    assert {"torch", "sglang", "torchvision", "nixl", "nixl-cu12", "transformers", "ray"} <= set(names)


def test_a_local_version_counts_as_its_release(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"torch": "2.13.0+cpu", "sglang": "0.5.19"}
    monkeypatch.setattr(profile, "_installed", lambda name: versions.get(name, "").partition("+")[0] or None)
    wanted = {"torch": "2.13.0", "sglang": "0.5.20", "nixl": "1.5.1"}
    assert profile.not_as_pinned(wanted) == {"sglang": "0.5.20", "nixl": "1.5.1"}


def test_torch_comes_first_with_its_dependencies_and_the_rest_without(monkeypatch: pytest.MonkeyPatch) -> None:
    installed: dict[str, str] = {}
    calls: list[tuple[str, ...]] = []

    def pip(*arguments: str) -> None:
        calls.append(arguments)
        installed.update(each.split("==") for each in arguments if "==" in each)

    monkeypatch.setattr(profile, "_pip", pip)
    monkeypatch.setattr(profile, "_installed", installed.get)
    count = profile.install(lambda step: None)
    assert count == len(profile.pins())
    assert [call[0] for call in calls] == [f"torch=={profile.pins()['torch']}", "--no-deps"]
    assert profile.install(lambda step: None) == 0
    assert len(calls) == 2


def test_a_pip_that_installs_nothing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile, "_pip", lambda *arguments: None)
    monkeypatch.setattr(profile, "_installed", lambda name: None)
    with pytest.raises(StartError, match="not as pinned"):
        profile.install(lambda step: None)


def test_shipped_configs_are_found_by_name_and_a_wrong_name_gets_a_near_one(tmp_path: Path) -> None:
    assert "local-cpu.yaml" in shipped_names()
    found = {find_config(name) for name in ("local-cpu", "local-cpu.yaml")}
    assert len(found) == 1
    own = tmp_path / "local-cpu.yaml"
    own.touch()
    assert find_config(str(own)) == own
    with pytest.raises(ConfigError, match=r"did you mean local-cpu\.yaml"):
        find_config("local-cpp.yaml")
    with pytest.raises(ConfigError, match="is not a file"):
        find_config(str(tmp_path / "none.yaml"))
