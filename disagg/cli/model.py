"""`disagg model`: fetches models by name, lists them, says where they lie, makes tiny ones and adapters for tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from disagg import stopping
from disagg.errors import DisaggError
from disagg.models.catalogue import CATALOGUE, KINDS, model_folder
from disagg.models.fetch import Tell, get_model
from disagg.models.manifest import damage
from disagg.models.random_adapter import make_adapter
from disagg.models.resolve import resolve_model
from disagg.models.tiny import make_tiny

app = typer.Typer(help="Fetch models and say where they lie.", no_args_is_help=True)


@app.command()
def get(
    name: Annotated[str, typer.Argument(help="A name that `disagg model list` shows, or a hub id (owner/name).")],
    revision: Annotated[str | None, typer.Option(help="Of a hub id: a branch, a tag or a commit.")] = None,
    verify: Annotated[bool, typer.Option(help="Compare every file's hash, not only its size.")] = False,
) -> None:
    """Download a model, with what it takes to serve it; at once when it is there. A hub id goes into the Hugging Face
    cache of this machine, as `disagg serve` puts it there."""
    with stopping.unwinding(), errors_told(), _progress(name) as tell:
        folder = get_model(name, revision, tell, verify)
    typer.echo(folder)


@app.command("list")
def list_models() -> None:
    """What can be fetched or made, and what is here."""
    table = Table("name", "what", "licence", "here", box=None)
    for model in CATALOGUE.values():
        table.add_row(model.name, model.title, model.licence, _state(model.name))
    for kind, what in KINDS.items():
        table.add_row(f"tiny-{kind}", f"random weights: {what}", "", _state(f"tiny-{kind}"))
    Console().print(table)


@app.command()
def path(name: Annotated[str, typer.Argument(help="A folder, a name or a hub id, as in `model.path`.")]) -> None:
    """The folder that `model.path: NAME` means."""
    with errors_told():
        typer.echo(resolve_model(name))


@app.command("make-tiny")
def make_tiny_model(
    kind: Annotated[str, typer.Argument(help=f"One of {', '.join(KINDS)}.")],
    into: Annotated[Path | None, typer.Option(help="Default: the cache, under the name tiny-KIND.")] = None,
) -> None:
    """Make a model of a few megabytes with random weights, for tests."""
    with stopping.unwinding(), errors_told(), _progress(f"tiny-{kind}") as tell:
        folder = make_tiny(kind, into, tell)
    typer.echo(folder)


@app.command("make-adapter")
def make_adapter_of_model(
    model: Annotated[str, typer.Argument(help="A folder, a name or a hub id, as in `model.path`.")],
    folder: Annotated[Path, typer.Argument(help="A new one.")],
    rank: Annotated[int, typer.Option(min=1, max=4096)] = 8,
    modules: Annotated[str, typer.Option(help="What it changes.")] = "q_proj,v_proj",
    seed: Annotated[int, typer.Option(min=0, help="Another one makes another adapter.")] = 0,
) -> None:
    """Make a LoRA adapter with random weights, to try adapters out."""
    with stopping.unwinding(), errors_told():
        made = make_adapter(model, folder, rank, tuple(modules.split(",")), seed)
    typer.echo(made)


def _state(name: str) -> str:
    folder = model_folder(name)
    if not folder.exists():
        return "no"
    wrong = damage(folder)
    return "yes" if wrong is None else f"damaged: {wrong}"


@contextmanager
def errors_told() -> Iterator[None]:
    """Every error of ours ends the command with status 1; it is told on stderr."""
    try:
        yield
    except DisaggError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None


@contextmanager
def _progress(name: str) -> Iterator[Tell]:
    """A bar on stderr while something takes its time; stdout holds the result alone."""
    look = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*look, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(name, total=None)

        def tell(step: str, part: float | None) -> None:
            bars.update(task, description=f"{name}: {step}", total=None if part is None else 1.0, completed=part or 0.0)

        yield tell
