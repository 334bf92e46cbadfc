"""`disagg setup`: brings the engine packages of a profile into this environment."""

from __future__ import annotations

import importlib.metadata
import shlex
from typing import Annotated

import typer

from disagg import stopping
from disagg.cli.model import errors_told
from disagg.cpu_profile.profile import install

PROFILES = ("cpu",)
CUDA = ("cuda", "gpu")


def setup(profile: Annotated[str, typer.Argument(help="cpu: engines on a machine without a GPU.")] = "cpu") -> None:
    """Install the pinned engine packages; at once when they are there."""
    if profile not in PROFILES:
        hint = f"for CUDA: {_cuda_command()}" if profile in CUDA else f"known: {', '.join(PROFILES)}"
        typer.echo(f"error: profile {profile}: is not known; {hint}", err=True)
        raise typer.Exit(2)
    with errors_told(), stopping.unwinding():  # pip ends with us
        installed = install(lambda step: typer.echo(f"setup: {step}"))
    typer.echo(f"setup: {installed} packages installed" if installed else "setup: nothing to do")


def _cuda_command() -> str:
    """What `pip install '.[cuda]'` brings in a checkout, by its own names: disagg itself is on no package index."""
    wanted = importlib.metadata.requires("disagg") or []
    packages = [each.partition(";")[0].strip() for each in wanted if each.replace('"', "'").endswith("== 'cuda'")]
    return shlex.join(["pip", "install", *packages])
