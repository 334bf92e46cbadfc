"""Finds the configuration that a command line names.

Way:   command line -> [find_config, find_cluster] -> load -> Deployment
In:    a path, or the name of one that ships: local-cpu, local-cpu.yaml, configs/local-cpu.yaml; clusters likewise
Fails: ConfigError, with the names that ship
"""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from disagg.errors import ConfigError, Problem

_PACKAGE = Path(__file__).absolute().parents[1]


def find_config(name: str, folder: Path = Path()) -> Path:
    """The path as given, from `folder` on; else that name among the configs of this checkout, or of the installed
    wheel."""
    return _find(name, folder, shipped_folder(), (Path(), Path("configs")))


def find_cluster(name: str) -> Path:
    """The path as given; else that name among the described clusters that ship."""
    return _find(name, Path(), shipped_folder() / "clusters", (Path(), Path("clusters"), Path("configs/clusters")))


def _find(name: str, folder: Path, ships_in: Path, parents: tuple[Path, ...]) -> Path:
    """`parents`: what may stand before the name of one that ships."""
    given = _at_home(name)
    if _is_file(folder / given):
        return folder / given
    if given.parent in parents:
        for candidate in (ships_in / given.name, ships_in / f"{given.name}.yaml"):
            if _is_file(candidate):
                return candidate
    shipped = sorted(path.name for path in ships_in.glob("*.yaml"))
    near = get_close_matches(given.name.removesuffix(".yaml"), [each.removesuffix(".yaml") for each in shipped], 1)
    would_do = f"did you mean {near[0]}.yaml?" if near else f"give a file, or one that ships: {', '.join(shipped)}"
    raise ConfigError(name, (Problem(name, "is not a file", would_do),))


def shipped_folder() -> Path:
    in_wheel = _PACKAGE / "_configs"
    return in_wheel if in_wheel.is_dir() else _PACKAGE.parent / "configs"


def shipped_names() -> list[str]:
    return sorted(path.name for path in shipped_folder().glob("*.yaml"))


def _at_home(name: str) -> Path:
    try:
        return Path(name).expanduser()
    except RuntimeError:  # nobody's home
        return Path(name)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name longer than any file's
        return False
