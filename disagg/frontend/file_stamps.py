"""Whether files are as they were: looked at now and then, as no watch survives all the ways in which files are renewed.

Way:   tls.py, key_sets.py -> [stamps]
Fails: never; a file that cannot be looked at has its error as stamp
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any


def stamps(paths: Iterable[str]) -> list[Any]:
    """Of each file, what changes with it or with who may read it; also where it is reached by links, as Kubernetes'
    secrets are."""
    found: list[Any] = []
    for path in paths:
        try:
            now = os.stat(os.path.expanduser(path))
            found.append((now.st_ctime_ns, now.st_size, now.st_ino, now.st_dev))
        except OSError as error:
            found.append(error.errno)
    return found
