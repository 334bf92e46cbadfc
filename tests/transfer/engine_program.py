"""Programs of this folder that import SGLang: in a process of their own, as an engine without a GPU would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from disagg.cpu_profile.paths import standin_environment


def last_line_of(program: str) -> Any:
    """What it printed last, as JSON."""
    path = os.pathsep.join(filter(None, sys.path))
    environment = standin_environment({**os.environ, "PYTHONPATH": path, "SGLANG_USE_CPU_ENGINE": "1"})
    words = [sys.executable, Path(__file__).with_name(program)]
    ran = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])
