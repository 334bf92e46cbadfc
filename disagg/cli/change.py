"""`disagg scale`, `apply`, `restart`, `role`, `rollback`, `revisions`, `stop`: changes of a deployment while it serves.

Way:   command line -> [these] -> ordering.py =HTTP=> a frontend -> the controller
In:    a configuration is read here, with what it extends and the environment's values, and sent whole, but for its keys
Fails: ConfigError of a configuration; StartError as ordering.py says
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Annotated

import click
import msgspec
import typer

from disagg import stopping
from disagg.cli.check import Sets
from disagg.cli.configs import Config, names_like
from disagg.cli.observe import Url
from disagg.cli.ordering import follow, give, say_yes, status
from disagg.registry import orders
from disagg.registry.orders import Stage
from disagg.roles import Role

FOR_READING = (
    "# For reading: secrets are left out, and no file may say of a role that it has none. Back to it: rollback --to"
)
Wait = Annotated[bool, typer.Option("--wait", help="Return when it is done, and tell how it goes.")]
Yes = Annotated[bool, typer.Option("--yes", help="Also where it takes service away: do not ask.")]


def scale(
    counts: Annotated[
        list[str],
        typer.Argument(help="Engines of a role: prefill=3 decode=2. Of one of several models: chat.prefill=3."),
    ],
    wait: Wait = False,
    yes: Yes = False,
    url: Url = None,
) -> None:
    """Add engines to a role, or drain and remove them, the highest number first."""
    said = dict(map(_count, counts))
    if len(said) < len(counts):
        raise click.UsageError("a role is said twice; say one count for each")
    give(url, orders.Scale(said), yes=yes, wait=wait)


def apply(
    config: Config,
    sets: Sets = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell what it would do, and do nothing.")] = False,
    wait: Wait = False,
    yes: Yes = False,
    url: Url = None,
) -> None:
    """Make the deployment what a configuration says, engine by engine; back again if new engines do not start."""
    import yaml

    from disagg.config.find import find_config
    from disagg.load import sent_tree

    tree, had_secrets = sent_tree(find_config(config), sets or ())
    if had_secrets:
        sys.stdout.write("keys and passwords are not sent, nor compared: they stay as they are until the next start\n")
    order = orders.Apply(yaml.safe_dump(tree, sort_keys=False), config)
    give(url, order, yes=yes, wait=wait, dry_run=dry_run)


def restart(
    of: Annotated[list[str] | None, typer.Argument(help="Roles, models, or engines; none: all engines.")] = None,
    rolling: Annotated[bool, typer.Option("--rolling", help="One after the other: the only way there is.")] = False,
    wait: Wait = False,
    yes: Yes = False,
    url: Url = None,
) -> None:
    """Drain and start engines again, one after the other, with a healthy pair always kept."""
    if not rolling:
        raise click.UsageError("say --rolling: engines are started again one after the other")
    give(url, orders.Restart(tuple(of or ())), yes=yes, wait=wait)


def role(
    engine: Annotated[str, typer.Argument(help="An engine's id, as `disagg status` shows it.")],
    becomes: Annotated[Role, typer.Argument(metavar="ROLE", help="prefill, decode, …")],
    wait: Wait = False,
    yes: Yes = False,
    url: Url = None,
) -> None:
    """Drain an engine, and start one of another role in its place, on the same GPUs."""
    give(url, orders.ChangeRole(engine, becomes), yes=yes, wait=wait)


def rollback(
    to: Annotated[int | None, typer.Option("--to", help="A revision; default: the one before.")] = None,
    wait: Wait = False,
    yes: Yes = False,
    url: Url = None,
) -> None:
    """Make the deployment what it was wanted to be at an earlier revision."""
    give(url, orders.Rollback(to), yes=yes, wait=wait)


def stop(
    config: Annotated[
        str | None,
        typer.Argument(
            help="Of a deployment that was started with --detach, and whose controller is dead: Ray ends it.",
            autocompletion=names_like,
        ),
    ] = None,
    sets: Sets = None,
    wait: Wait = False,
    yes: Yes = False,
    url: Url = None,
) -> None:
    """End the deployment in order: what runs may end, within deadlines.stop_s."""
    if config is not None:
        _stop_through_ray(config, sets or (), yes=yes)
        return
    give(url, orders.Stop(), yes=yes, wait=wait)


def revisions(
    show: Annotated[int | None, typer.Option(help="The configuration of that revision, as YAML.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the change that is under way, if one is.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    url: Url = None,
) -> None:
    """What the deployment was wanted to be, and when; and the change that is under way, or the last one."""
    found = status(url, show or 0)
    if wait and found.change is not None and found.change.stage is Stage.RUNNING:
        follow(url, found.change.number)
        return
    if as_json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(found), indent=1).decode() + "\n")
        return
    if show is not None:
        config = next((each.config for each in found.revisions if each.number == show), None)
        if config is None:
            raise click.UsageError(f"there is no revision {show}")
        sys.stdout.write(f"{FOR_READING} {show}\n{config}")
        return
    for each in found.revisions:
        is_now = "  <- now" if each is found.revisions[-1] else ""
        sys.stdout.write(f"{each.number:>4}  {_when(each.at_s)}  {each.what}{is_now}\n")
    if found.change is not None:
        why = f": {found.change.why.splitlines()[0]}" if found.change.why else ""
        sys.stdout.write(
            f"last change  {_when(found.change.began_s)}  {found.change.what}: {found.change.stage}{why}\n"
        )


def _stop_through_ray(config: str, sets: Sequence[str], *, yes: bool) -> None:
    from disagg.config.find import find_config
    from disagg.load import load_config

    deployment = load_config(find_config(config), sets)
    if not yes:
        say_yes("stop", f"deployment {deployment.name} ends: engines, frontends, and all that is in them")
    import uvloop

    from disagg.cluster.detached.command import stop_detached

    stopping.aside(lambda: uvloop.run(stop_detached(deployment)))
    sys.stdout.write(f"deployment {deployment.name} is gone\n")


def _count(text: str) -> tuple[str, int]:
    """A role, or MODEL.ROLE."""
    name, equals, count = text.partition("=")
    if name.rpartition(".")[2] not in list(Role) or not equals or not count.isdecimal() or len(count) > 6:
        raise click.UsageError(f"{text!r} is no count of engines; say for instance prefill=3, or chat.prefill=3")
    return name, int(count)


def _when(at_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at_s))
