"""A dead peer is dropped once it is registered whole, with SGLang's own manager."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from disagg.engine.cpu.paths import standin_environment


@pytest.mark.engine
def test_a_peer_that_dies_while_it_is_registered_does_not_end_the_registering() -> None:
    program = Path(__file__).with_name("drop_while_registering.py")
    path = os.pathsep.join(filter(None, sys.path))
    environment = standin_environment({**os.environ, "PYTHONPATH": path, "SGLANG_USE_CPU_ENGINE": "1"})
    ran = subprocess.run([sys.executable, program], env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout.splitlines()[-1]) == ["registered", "removed", 0]
