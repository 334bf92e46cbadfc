"""`disagg check`: what a configuration would start, and everything that is wrong with it. Starts nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated

import click
import typer

from disagg import stopping
from disagg.cli.configs import names_like
from disagg.errors import ConfigError, Problem

if TYPE_CHECKING:
    from disagg.planning.assess import Assessment

Sets = Annotated[list[str] | None, typer.Option("--set", help="path.to.key=value, over the YAML.")]


def check(
    config: Annotated[
        str | None,
        typer.Argument(help="A YAML file, or the name of a shipped one (local-cpu).", autocompletion=names_like),
    ] = None,
    sets: Sets = None,
    assume_cluster: Annotated[
        str | None,
        typer.Option("--assume-cluster", help="A YAML file that describes the nodes, or the name of a shipped one."),
    ] = None,
    on_cluster: Annotated[bool, typer.Option("--on-cluster", help="Look at the nodes of ray.address, too.")] = False,
    lanes: Annotated[bool, typer.Option("--lanes", help="With it: measure how KV gets from node to node.")] = False,
    deep: Annotated[bool, typer.Option("--deep", help="With it: each node reads all bytes of the model.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For programs; problems are in it too.")] = False,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of configurations.")] = False,
) -> None:
    """Print the resolved plan: places, command lines, memory, cost of transfers. Exit status 2 when it would fail."""
    if schema:
        from disagg.config.json_schema import json_schema

        print(json.dumps(json_schema(), indent=2))
        return
    if config is None:
        raise click.UsageError("name a configuration, or say --schema")
    if on_cluster and assume_cluster:
        raise click.UsageError("say --assume-cluster or --on-cluster, not both")
    if (lanes or deep) and not on_cluster:
        raise click.UsageError("--lanes and --deep look at nodes; add --on-cluster")
    if on_cluster:
        from disagg.cli.on_cluster import look_at_cluster

        stopping.aside(lambda: look_at_cluster(config, sets or (), lanes=lanes, deep=deep, as_json=as_json))
        return
    try:
        seen = look_at(config, sets or (), assume_cluster)
    except ConfigError as error:
        if not as_json:
            raise
        print(json.dumps({"problems": [asdict(problem) for problem in error.problems]}, indent=2))
        raise typer.Exit(2) from None
    show(config, seen, as_json=as_json)


def look_at(config: str, sets: list[str] | tuple[str, ...], assume_cluster: str | None = None) -> list[Assessment]:
    """The plan of each model and what can be told of it before a start. Raises ConfigError with all problems of both
    files."""
    from disagg.config.find import find_cluster, find_config
    from disagg.load import load_config
    from disagg.planning.assess import assess
    from disagg.planning.cluster_shape import load_shape
    from disagg.planning.plan import device_of, resolve_parts

    problems: list[Problem] = []
    try:
        shape = load_shape(find_cluster(assume_cluster)) if assume_cluster else None
    except ConfigError as error:
        problems += [_of_cluster(problem, error.where) for problem in error.problems]
    try:
        deployment = load_config(find_config(config), sets)
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(config, tuple(problems))
    plans = resolve_parts(deployment, device_of(deployment, shape.gpus if shape else 0))
    return [assess(plan, shape) for plan in plans]


def _of_cluster(problem: Problem, file: str) -> Problem:
    """A problem of the cluster's file, with that file named: the configuration's problems are told with it."""
    return problem if problem.path == file else replace(problem, what=f"{problem.what} (in {file})")


def show(config: str, seen: Sequence[Assessment], *, as_json: bool = False) -> None:
    """Prints the plan; then, if anything speaks against it, raises ConfigError, or exits with 2 where JSON says why."""
    from disagg.planning.report import render_all, to_json

    problems = list(dict.fromkeys(problem for each in seen for problem in problems_of(each)))
    warnings = list(dict.fromkeys(warning for each in seen for warning in warnings_of(each)))
    print(to_json(seen, problems, warnings) if as_json else render_all(seen, warnings), flush=True)
    if problems and as_json:
        raise typer.Exit(2)
    if problems:
        raise ConfigError(config, tuple(problems))


def problems_of(seen: Assessment) -> list[Problem]:
    """All that refuses a plan: the model's files here, the registry's, and the preflight."""
    from disagg.preflight.api import check as preflight
    from disagg.preflight.file_rules import problems_here

    model = seen.plan.model
    deployment = seen.plan.deployment
    of_files = (replace(each, path=deployment.at(each.path)) for each in problems_here(model.path, model.revision))
    return [*of_files, *deployment.registry.problems(), *preflight(seen.plan, seen.shape, seen.facts)]


def warnings_of(seen: Assessment) -> list[str]:
    """All that only slows a deployment down, or may surprise."""
    from disagg.preflight.api import check_warnings

    return [*seen.plan.warnings, *check_warnings(seen.plan, seen.shape, seen.facts)]
