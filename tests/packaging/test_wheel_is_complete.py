"""`pip install .` away from a checkout: the wheel has the packages, the configs, the engine profile and the plugins."""

import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from disagg.cpu_profile import profile

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


def test_the_wheel_ships_all_that_a_checkout_has(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    sources = {
        str(path.relative_to(ROOT))
        for package in ("disagg", "prefill", "decode", "transfer")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert "disagg/deploy/manifests/rayjob.yaml.j2" in sources
    assert sources - inside == set()
    configs = {f"disagg/_configs/{path.relative_to(ROOT / 'configs')}" for path in (ROOT / "configs").rglob("*.yaml")}
    assert configs
    assert configs <= inside
    assert any(name.endswith("licenses/LICENSE") for name in inside)
    assert not any(name.startswith(("tests/", "benchmarks/")) for name in inside)


def test_plugins_are_found_by_sglang_and_can_be_loaded(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (entry_points,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        text = archive.read(entry_points).decode()
    assert "[sglang.srt.plugins]" in text
    ours = [each for each in metadata.entry_points(group="sglang.srt.plugins") if each.name.startswith("disagg_")]
    assert ours
    for plugin in ours:
        assert f"{plugin.name} = {plugin.value}" in text
        assert callable(plugin.load())


def test_the_pins_fit_what_the_project_asks_for() -> None:
    """pip takes the pins as constraints: one that does not fit would make `make setup` impossible."""
    requirements = pytest.importorskip("packaging.requirements")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = {name.lower().replace("_", "-"): version for name, version in profile.pins().items()}
    extras = project["optional-dependencies"]
    for line in [*project["dependencies"], *extras["cpu"], *extras["cuda"], *extras["dev"]]:
        wanted = requirements.Requirement(line)
        pinned = pins.get(wanted.name.lower().replace("_", "-"))
        assert pinned is None or wanted.specifier.contains(pinned), f"{line}, but {pinned} is pinned"
    for line in extras["dev"]:
        assert "==" in line, f"{line}: the tools are pinned, or `make check` means another thing tomorrow"
