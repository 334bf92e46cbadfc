"""Asks each supported SGLang release itself: downloads its wheel and runs its own parser, in a process of its own.

    python -m tests.config.sglang_wheels [--wheels FOLDER] [--write]

Way:   package index -> FOLDER/sglang-0.5.xx-*.whl -> its Python files -> [its ServerArgs, imported beside our torch]
Out:   what every release says of its arguments, compared with disagg/sglang/releases.jsonl, and every command
       line of sglang_engines.py read back by it. `--write` renews the table and the lists in docs/sglang-versions.md
       instead: run it again without, then
Fails: exit 1 and the difference. The 8 wheels are 210 MB; 10 s a release on an idle machine

SGLang need not be installed for it, but what it imports must be: `make setup`'s environment will do.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from disagg.cpu_profile.paths import standin_environment
from disagg.sglang.releases import RELEASES, TABLE
from tests.config.sglang_document import renew
from tests.config.sglang_table import table

ROOT = Path(__file__).parents[2]
IMPORT_LIMIT_S = 240


def main(about: str | None, run: Callable[[Path, Path, bool], int]) -> int:
    """The command line of a program over all wheels: `run(wheels, scratch, write)` returns what failed."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheels", type=Path, help="where the wheels are, or go; default: a folder that goes away")
    parser.add_argument("--write", action="store_true", help="renew the table, and what is made of it")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        return 1 if run(given.wheels or Path(scratch), Path(scratch), given.write) else 0


def _run(wheels: Path, scratch: Path, write: bool) -> int:
    told, failed = {}, 0
    for version in RELEASES:
        answer = ask(unpacked(version, wheels, scratch), version, *(["--table-only"] if write else []))
        told[version] = answer["arguments"]
        failed += len(answer["complaints"])
        print(
            f"{version}: {len(told[version])} arguments, {answer['lines']} command lines",
            *answer["complaints"],
            sep="\n  ",
        )
    failed += held(TABLE, table(told), write=write)
    if write:
        renew()
    return failed


def held(table_file: Path, text: str, *, write: bool) -> int:
    """How many differences there are (0 or 1) between what the wheels say and the file, which `write` renews."""
    if write:
        table_file.write_text(text, encoding="utf-8")
    elif text != table_file.read_text(encoding="utf-8"):
        file = table_file.relative_to(ROOT)
        print(f"{file} is not what the wheels say: run this with --write, and read the difference")
        return 1
    return 0


def ask(package_root: Path | None, version: str, *options: str) -> Any:
    """What tests/config/sglang_asked.py finds out beside that SGLang."""
    with tempfile.NamedTemporaryFile("r", suffix=".json") as answer:
        done = beside(package_root, "tests.config.sglang_asked", version, answer.name, *options)
        if done.returncode:
            raise RuntimeError(f"sglang {version} could not be asked:\n{done.stderr[-3000:]}")
        return json.load(answer)


def beside(package_root: Path | None, *module: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a module of ours where `import sglang` finds that of `package_root`; None: the installed one."""
    path = os.pathsep.join(str(root) for root in (package_root, ROOT) if root)
    ours = {"PYTHONPATH": path, "SGLANG_USE_CPU_ENGINE": "1"}
    return subprocess.run(
        [sys.executable, "-m", *module],
        cwd=ROOT,
        env=standin_environment({**os.environ, **ours, **environment}),
        capture_output=True,
        text=True,
        timeout=IMPORT_LIMIT_S,
        check=False,
    )


def unpacked(version: str, wheels: Path, scratch: Path, suffix: str = ".py") -> Path:
    wheels.mkdir(parents=True, exist_ok=True)
    if not list(wheels.glob(f"sglang-{version}-*.whl")):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        subprocess.run([*command, f"sglang=={version}", "--dest", str(wheels)], check=True)
    (wheel,) = wheels.glob(f"sglang-{version}-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(scratch / version, [name for name in archive.namelist() if name.endswith(suffix)])
    return scratch / version


if __name__ == "__main__":
    sys.exit(main(__doc__, _run))
