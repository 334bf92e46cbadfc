"""RAY_ADDRESS names a cluster that is gone, or one that says nothing: a signal ends who waits for it."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from programs import Program, disagg, groups, signal_each

from tests.todays import todays

pytestmark = pytest.mark.slow  # each imports Ray

MOMENTS_S = [round(0.2 * n, 1) for n in range(1, 31)]
COMMANDS = {
    "serve": ["serve", "configs/simulated.yaml"],
    "check": ["check", "configs/simulated.yaml", "--on-cluster"],
    "bench": ["bench", "transfer", "--from", "10.0.0.1", "--to", "10.0.0.2"],
}


@pytest.fixture
def silent() -> Iterator[str]:
    """An address that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def refused() -> Iterator[str]:
    """An address where nobody listens, and nobody will."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{bound.getsockname()[1]}"


@pytest.mark.parametrize("where", ["silent", "refused"])
@pytest.mark.parametrize("command", COMMANDS)
def test_at_any_moment(request: pytest.FixtureRequest, tmp_path: Path, command: str, where: str) -> None:
    environment = {"RAY_ADDRESS": request.getfixturevalue(where), "TMPDIR": str(tmp_path)}
    number = signal.SIGINT if where == "silent" else signal.SIGTERM
    for moments_s in groups(todays(MOMENTS_S, 2 if command == "serve" else 1), 3):
        programs = [Program.start(disagg(*COMMANDS[command]), environment) for _ in moments_s]
        try:
            signal_each(programs, moments_s, number)
            for program, at_s in zip(programs, moments_s, strict=True):
                # It may give up by itself before, and say why.
                expected = 128 + number if program.signalled else 1
                assert program.status() == expected, f"{at_s} s: {program.said()}"
                assert "Traceback" not in program.said()
        finally:
            for program in programs:
                program.close()
    assert not list(tmp_path.glob("disagg-*"))
