"""`disagg logs --rank`: what one dp rank says, on whatever node."""

from __future__ import annotations

from typer.testing import CliRunner

from disagg.cli.app import app
from disagg.cli.logs import of_rank
from disagg.logfile import ASKED_LINES_MAX


def test_the_command_takes_as_many_lines_as_a_frontend_gives() -> None:
    """At 100,000 the command said yes and the frontend no."""
    refused = CliRunner().invoke(app, ["logs", "decode-0", "-n", str(ASKED_LINES_MAX + 1)])
    assert refused.exit_code == 2
    assert str(ASKED_LINES_MAX) in refused.output


LOG = """[2026-11-25 04:31:28 DP0 TP0] Prefill batch
[2026-11-25 04:31:28] the host says
[2026-11-25 04:31:28 DP1 TP1] Traceback:
  File "x"
[2026-11-25 04:31:28 DP10 TP10] another"""


def test_lines_of_a_rank_and_what_belongs_to_them() -> None:
    assert list(of_rank(LOG.splitlines(), 1)) == [(2, "[2026-11-25 04:31:28 DP1 TP1] Traceback:"), (3, '  File "x"')]
