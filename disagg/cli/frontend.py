"""`disagg frontend`: serve a deployment on another host than its controller's.

Way:   command line, DISAGG_SECRET -> [frontend] -> cluster/lone_frontend.py
Fails: StartError where there is no secret; ConfigError where a configuration names no shared registry
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import click
import typer

from disagg import stopping
from disagg.cli.check import Sets
from disagg.cli.configs import names_like
from disagg.errors import StartError
from disagg.host_spec import OPERATORS_SECRET

if TYPE_CHECKING:
    from disagg.config.schema import Deployment
    from disagg.registry.sealed import Secret
    from disagg.registry.shared import Shared


def frontend(
    config: Annotated[
        str | None,
        typer.Argument(
            help="The deployment's configuration. Else say --registry and --deployment.", autocompletion=names_like
        ),
    ] = None,
    sets: Sets = None,
    registry: Annotated[
        str | None, typer.Option(help="file:/FOLDER, or etcd:HOST:PORT,HOST:PORT without TLS and password.")
    ] = None,
    deployment: Annotated[str | None, typer.Option(help="Its name.")] = None,
    namespace: Annotated[str, typer.Option(help="Its namespace.")] = "disagg",
    host: Annotated[str | None, typer.Option(help="Where to listen; default: as the deployment's own.")] = None,
    port: Annotated[int | None, typer.Option(help="Where to listen; default: as the deployment's own.")] = None,
    models: Annotated[
        list[str] | None, typer.Option("--model", help="NAME=PATH: where a model is on this host.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, max=64, help="Processes that share the port.")] = 1,
    peer_host: Annotated[
        str, typer.Option(help="Where other frontends reach this host; default: its address towards the controller.")
    ] = "",
    tls_cert: Annotated[str, typer.Option(help="Instead of frontend.tls.cert.")] = "",
    tls_key: Annotated[str, typer.Option(help="Instead of frontend.tls.key.")] = "",
    tls_client_ca: Annotated[str, typer.Option(help="Instead of frontend.tls.client_ca.")] = "",
    keys_file: Annotated[str, typer.Option(help="Instead of security.keys_file.")] = "",
    secret_file: Annotated[
        Path | None, typer.Option(help=f"A file with security.secret of the deployment; default: ${OPERATORS_SECRET}.")
    ] = None,
) -> None:
    """Serve a deployment on this host, until Ctrl-C or SIGTERM: its registry says all that is needed."""
    import uvloop

    from disagg.cluster.lone_frontend import Wanted, serve_alone
    from disagg.frontend.on_host import OnHost
    from disagg.registry.keys import Keys
    from disagg.registry.shared import Shared, store_at
    from disagg.telemetry.stderr_log import log_to_stderr

    if config is not None:
        if registry or deployment:
            raise click.UsageError("say a configuration, or --registry and --deployment")
        shared, secret = _of_config(config, sets or (), secret_file)
    elif registry is None or deployment is None:
        raise click.UsageError("say --registry and --deployment, or a configuration")
    else:
        shared = Shared(store_at(registry), Keys(namespace, deployment))
        secret = _secret(secret_file, shared)
    by_name = dict(map(_model, models or ()))
    tls = {"tls_cert": tls_cert, "tls_key": tls_key, "tls_client_ca": tls_client_ca}
    said = OnHost(host, port, by_name, **tls, keys_file=keys_file)
    wanted = Wanted(shared, secret, count, peer_host, said)
    lines = log_to_stderr("[%(asctime)s] %(message)s")
    with stopping.farewell(lines.flush):
        stopping.aside(lambda: uvloop.run(serve_alone(wanted)))


def _of_config(config: str, sets: list[str] | tuple[str, ...], secret_file: Path | None) -> tuple[Shared, Secret]:
    from disagg.cli.listing import store_of
    from disagg.cluster.elsewhere import secret_of
    from disagg.config.find import find_config
    from disagg.load import load_config, secret_variables
    from disagg.registry.keys import Keys
    from disagg.registry.shared import Shared

    file = find_config(config)
    deployment: Deployment = load_config(file, sets)
    for name in secret_variables(file, sets):  # frontends would inherit them
        os.environ.pop(name, None)
    shared = Shared(store_of(config, deployment.registry), Keys(deployment.namespace, deployment.name))
    secret = None if secret_file is not None else secret_of(deployment)
    return shared, secret or _secret(secret_file, shared)


def _secret(file: Path | None, shared: Shared) -> Secret:
    from disagg.config.frontend import why_no_secret
    from disagg.registry.sealed import Secret

    where = f"${OPERATORS_SECRET}" if file is None else str(file)
    try:
        text = os.environ.pop(OPERATORS_SECRET, "") if file is None else file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise StartError(where, f"cannot be read: {error}", "name the file with security.secret") from None
    if not text:
        raise StartError(where, "is empty, or not set", "give this host security.secret of the deployment")
    if why_not := why_no_secret(text):
        raise StartError(where, why_not)
    return Secret(text, shared.keys)


def _model(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise click.UsageError(f"{text!r} is no NAME=PATH; say for instance --model smollm2=/models/smollm2")
    return name, path
