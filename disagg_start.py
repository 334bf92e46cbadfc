"""The `disagg` command's first steps: where our code comes from, before any of it is imported.

Way:   console script -> [main] -> disagg.cli.main
Why:   `ray job submit --working-dir` puts the job's folder in front of everything, and a user's own decode.py there
       would be imported instead of ours. Not in the package: a disagg.py could stand there, too
Fails: exit status 2 where PYTHONPATH leads to other modules of our names; it is the user's word, so it is not overruled
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, MutableMapping
from pathlib import Path

OURS = ("disagg", "prefill", "decode", "transfer")
JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # a job's driver has it


def main() -> None:
    sys.path[:] = leave_the_folder(os.environ, sys.path)
    if told := shadow(os.environ.get("PYTHONPATH", "").split(os.pathsep)):
        sys.stderr.write(f"{told}\n")
        raise SystemExit(2)
    from disagg.cli.main import program as run

    run()


def leave_the_folder(environment: MutableMapping[str, str], path: Iterable[str]) -> list[str]:
    """`path` without a job's working folder, which is the current one; so are PYTHONPATH and what is started later."""
    environment["PYTHONSAFEPATH"] = "1"  # `python -m` and `-c` would look into the current folder first
    if not environment.get(JOB_CONFIG):
        return list(path)  # whoever says PYTHONPATH=. by hand means it
    left = [each for each in environment.get("PYTHONPATH", "").split(os.pathsep) if each and not _is_here(each)]
    environment["PYTHONPATH"] = os.pathsep.join(left)
    return [each for each in path if not _is_here(each)]


def shadow(entries: Iterable[str]) -> str:
    """What is wrong with an entry of PYTHONPATH; empty: nothing."""
    for entry in filter(None, entries):
        folder = Path(entry)
        if (folder / "disagg" / "__init__.py").is_file():
            return ""  # another whole checkout of ours
        for name in OURS:
            for file in (folder / f"{name}.py", folder / name / "__init__.py"):
                if file.is_file():
                    what = f"has {file.relative_to(folder)}, which would be imported instead of disagg's own"
                    return f"PYTHONPATH={entry}: {what}; rename it, or take the folder out of PYTHONPATH"
    return ""


def _is_here(entry: str) -> bool:
    try:
        return os.path.samefile(entry or ".", ".")
    except OSError:
        return False


if __name__ == "__main__":
    main()
