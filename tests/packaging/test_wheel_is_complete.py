"""`pip install .` away from a checkout: the wheel has the packages, the configs, the engine profile and the plugins."""

import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from disagg.engine.cpu import profile

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, timeout=120)
    (built,) = folder.glob("disagg-*.whl")
    return built


def test_the_wheel_ships_all_that_a_checkout_has(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    sources = {
        str(path.relative_to(ROOT))
        for package in ("disagg", "prefill", "decode", "transfer")
        for path in (ROOT / package).rglob("*")
        if path.suffix in (".py", ".txt", ".typed", ".json", ".html") and "__pycache__" not in path.parts
    }
    assert sources - inside == set()
    configs = {f"disagg/_configs/{path.name}" for path in (ROOT / "configs").glob("*.yaml")}
    assert configs
    assert configs <= inside
    assert any(name.endswith("licenses/LICENSE") for name in inside)
    assert not any(name.startswith(("tests/", "benchmarks/")) for name in inside)


def test_away_from_the_checkout_it_finds_its_configs_and_needs_no_torch(wheel: Path, tmp_path: Path) -> None:
    """Unpacked, as pip would; the environment's own packages below it, but for torch, SGLang and transformers."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    for heavy in ("torch", "sglang", "transformers"):
        (tmp_path / f"{heavy}.py").write_text("raise ModuleNotFoundError('kept out by the test')\n")
    script = (
        "import disagg, disagg.cli.main, disagg.cli.model, disagg.cli.setup, disagg.config.load\n"
        "from disagg.config.shipped import find_config\n"
        "print(disagg.__file__, find_config('local-cpu.yaml'), find_config('configs/local-cpu.yaml'))\n"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path), "HOME": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    package, by_name, by_path = done.stdout.split()
    assert package == str(tmp_path / "disagg" / "__init__.py")
    assert by_name == by_path == str(tmp_path / "disagg" / "_configs" / "local-cpu.yaml")


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
