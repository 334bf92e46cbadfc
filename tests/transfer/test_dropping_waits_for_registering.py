"""A dead peer is dropped once it is registered whole, with SGLang's own manager."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # tests share engine_program.py; they are not a package

from engine_program import last_line_of


@pytest.mark.engine
def test_a_peer_that_dies_while_it_is_registered_does_not_end_the_registering() -> None:
    assert last_line_of("drop_while_registering.py") == ["registered", "removed", 0]
