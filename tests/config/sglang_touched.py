"""What of SGLang our plugins touch, as each supported release has it; and how the plugins behave in each.

    python -m tests.config.sglang_touched [--wheels FOLDER] [--write]

Way:   package index -> FOLDER/sglang-0.5.xx-*.whl -> its Python files -> signatures, read; then, in a process of its
       own, its sampler and classes, imported beside our torch and patched as an engine does it (sglang_behaves.py)
Out:   sglang_touched.jsonl beside this file, which `make test` holds against disagg/sglang/touched.py without wheels.
       `--write` renews it; without, it is compared
Fails: exit 1 and what differs, by release
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from disagg.sglang.fit import misfits
from disagg.sglang.releases import RELEASES
from disagg.sglang.signatures import Sources
from disagg.sglang.touched import PARTS
from tests.config.sglang_wheels import beside, held, main, unpacked

TABLE = Path(__file__).with_suffix(".jsonl")


def paths() -> list[str]:
    return sorted({path for part in PARTS for touch in part.touches for path in touch.paths})


class Told:
    """A release as the table tells it, in the place of its files."""

    def __init__(self, version: str, rows: list[dict[str, str]]) -> None:
        self._is = {row["path"]: row["is"] for row in rows if row["since"] <= version <= row["until"]}

    def of(self, path: str) -> str:
        return self._is.get(path, "")


def rows() -> list[dict[str, str]]:
    return [json.loads(line) for line in TABLE.read_text(encoding="utf-8").splitlines()]


def table(found: Mapping[str, Sources]) -> str:
    """A line a path and unbroken span of releases where it is the same; where it is not there, no line."""
    lines: list[dict[str, str]] = []
    for path in paths():
        last = ""
        for version, sources in found.items():
            told = sources.of(path)
            if told and told == last:
                lines[-1]["until"] = version
            elif told:
                lines.append({"path": path, "since": version, "until": version, "is": told})
            last = told
    return "".join(json.dumps(line) + "\n" for line in lines)


def behaves(package_root: Path | None) -> list[str]:
    """Complaints of sglang_behaves.py, run beside that SGLang (None: the installed one)."""
    done = beside(package_root, "tests.config.sglang_behaves", TORCHDYNAMO_DISABLE="1")
    if done.returncode not in (0, 1):
        return [f"could not be asked: {done.stderr[-1500:]}"]
    complaints: list[str] = json.loads(done.stdout.splitlines()[-1]) if done.stdout.strip() else [done.stderr[-1500:]]
    return complaints


def _run(wheels: Path, scratch: Path, write: bool) -> int:
    failed, found = 0, {}
    for version in RELEASES:
        root = unpacked(version, wheels, scratch, suffix="")  # its kernels' sources are looked for on import
        found[version] = Sources(root)
        complaints: list[Any] = [
            f"{part.name}: {why}" for part in PARTS if version >= part.since for why in misfits(part, found[version])
        ]
        complaints += behaves(root)
        failed += len(complaints)
        print(f"{version}: {len(complaints)} complaints", *complaints, sep="\n  ", flush=True)
    failed += held(TABLE, table(found), write=write)
    return failed


if __name__ == "__main__":
    sys.exit(main(__doc__, _run))
