"""`disagg setup`: brings the engine packages of a profile into this environment."""

from __future__ import annotations

from typing import Annotated

import typer

from disagg import stopping
from disagg.engine.cpu.profile import install
from disagg.errors import DisaggError

PROFILES = ("cpu",)


def setup(profile: Annotated[str, typer.Argument(help="cpu: engines on a machine without a GPU.")] = "cpu") -> None:
    """Install the pinned engine packages; at once when they are there."""
    if profile not in PROFILES:
        hint = "for CUDA: pip install 'disagg[cuda]'" if profile in ("cuda", "gpu") else f"known: {', '.join(PROFILES)}"
        typer.echo(f"error: profile {profile}: is not known; {hint}", err=True)
        raise typer.Exit(2)
    try:
        with stopping.unwinding():  # pip ends with us
            installed = install(lambda step: typer.echo(f"setup: {step}"))
    except DisaggError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    typer.echo(f"setup: {installed} packages installed" if installed else "setup: nothing to do")


if __name__ == "__main__":
    typer.run(setup)
