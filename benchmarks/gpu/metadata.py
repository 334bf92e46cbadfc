"""Writes the metadata that packages have once they are installed, for code that is imported from a folder.

Way:   run.sh -> [metadata] -> FOLDER/*.dist-info; FOLDER is on PYTHONPATH, so SGLang finds its plugins there
Why:   SGLang loads plugins by entry point, and a checkout on PYTHONPATH has none

Run:   python3 -m benchmarks.gpu.metadata FOLDER
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

PROJECT = Path(__file__).absolute().parents[2]
GROUP = "sglang.srt.plugins"


def write_metadata(folder: Path, project: Path = PROJECT) -> None:
    said = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    _write(folder, said["name"], said["version"], {GROUP: said["entry-points"][GROUP]})
    _write(folder, "disagg-gpu-bench", "0", {GROUP: {"disagg_gpu_bench": "benchmarks.gpu.shape:activate"}})


def _write(folder: Path, name: str, version: str, groups: dict[str, dict[str, str]]) -> None:
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
    lines = [line for group, names in groups.items() for line in (f"[{group}]", *map(" = ".join, names.items()), "")]
    (info / "entry_points.txt").write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    write_metadata(Path(sys.argv[1]))
