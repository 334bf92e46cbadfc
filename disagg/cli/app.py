"""`disagg`: the command line. Each command imports what it needs, so that `--help` and `check`-like ones stay quick.

Exit status: 0 done, 1 a deployment could not start or a request failed, 2 the configuration or the command is wrong,
128 + N signal N ended it; a deployment that had served, and was stopped in order, is done
"""

from __future__ import annotations

import errno
import importlib.metadata
import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from disagg import stopping
from disagg.cli import act, bench, change, deploy, logs, model, observe
from disagg.cli.check import Sets, check, look_at, show
from disagg.cli.configs import Config, configs
from disagg.cli.doctor import doctor
from disagg.cli.events import events
from disagg.cli.frontend import frontend
from disagg.cli.listing import list_all
from disagg.cli.report import report
from disagg.cli.setup import setup
from disagg.cli.top import top
from disagg.errors import ConfigError, DisaggError
from disagg.host_spec import OPERATORS_SECRET

OUTPUT_FAILS = (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EIO)

HELP = """One language model on separate prefill and decode engines, behind an OpenAI-compatible endpoint.

The first thing to run: `disagg serve local-cpu`.

Environment: DISAGG_URL, a running frontend; DISAGG_API_KEY, a key that it asks for; DISAGG_CA, who signed its
certificate; DISAGG_CLIENT_CERT, a certificate and its key that it asks for; DISAGG_SECRET, the secret of a deployment,
for `disagg frontend`; DISAGG_CACHE, where models lie.

Exit status: 0 done, also when a deployment that had served was stopped; 1 a deployment could not start, or a request
failed; 2 the configuration or the command is wrong; 128 + N signal N ended it.
"""

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help=HELP)
app.add_typer(model.app, name="model", help="Models: fetch, list, make tiny ones for tests.")
app.add_typer(
    deploy.app,
    name="deploy",
    help="Render a configuration for SLURM, Kubernetes or Docker; for Prometheus and Grafana.",
)
app.add_typer(bench.app, name="bench", help="Measure what a machine, or a cluster, can do.")
app.command()(setup)
app.command()(configs)
app.command()(check)
app.command()(frontend)
app.command("list")(list_all)
app.command()(observe.status)
app.command()(logs.logs)
app.command()(events)
app.command()(top)
app.command()(doctor)
app.command()(report)
app.command()(act.drain)
app.command()(act.cancel)
app.command()(change.scale)
app.command()(change.apply)
app.command()(change.restart)
app.command()(change.role)
app.command()(change.rollback)
app.command()(change.revisions)
app.command()(change.stop)


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", help="Versions of disagg and of what it runs.")] = False,
    ca: Annotated[Path | None, typer.Option("--ca", help="Who signed the certificate of a frontend with TLS.")] = None,
) -> None:
    if ca is not None:
        os.environ[observe.CA_VARIABLE] = str(ca)
    if version:
        for name in ("disagg", "sglang", "ray", "nixl", "torch"):
            print(f"{name} {_installed(name)}")
        raise typer.Exit


def _installed(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


@app.command()
def serve(
    config: Config,
    sets: Sets = None,
    model: Annotated[
        str | None, typer.Option("--model", help="Instead of model.path: a folder, a name, a hub id.")
    ] = None,
    host: Annotated[str | None, typer.Option("--host", help="Instead of frontend.host.")] = None,
    port: Annotated[int | None, typer.Option("--port", help="Instead of frontend.port.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved plan and stop.")] = False,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="That others reach it without keys is meant: do not warn.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Do not say what to try first, nor what goes on.")] = False,
    detach: Annotated[
        bool, typer.Option("--detach", help="Return once it serves; it serves on, on a Ray cluster that runs already.")
    ] = False,
) -> None:
    """Serve a deployment until Ctrl-C or SIGTERM; with --detach until `disagg stop`."""
    short = {"model.path": model, "frontend.host": host, "frontend.port": port}
    short |= {"security.insecure": True} if insecure else {}
    sets = [*(sets or ()), *(f"{path}={json.dumps(value)}" for path, value in short.items() if value is not None)]
    from disagg.config.find import find_config
    from disagg.load import load_config, secret_variables

    file = find_config(config)
    if dry_run:
        if detach:
            from disagg.cluster.detached.command import refuse_to_detach

            refuse_to_detach(load_config(file, sets))
        show(config, look_at(config, sets))
        return
    deployment = load_config(file, sets)
    # Ray and engines would inherit them.
    for name in (observe.KEY_VARIABLE, OPERATORS_SECRET, *secret_variables(file, sets)):
        os.environ.pop(name, None)
    import uvloop

    from disagg.telemetry.stderr_log import log_to_stderr

    if detach:
        from disagg.cluster.detached.command import serve_detached as until_stopped
    else:
        from disagg.cluster.serve import serve as until_stopped
    lines = log_to_stderr("[%(asctime)s] %(message)s")
    with stopping.farewell(lines.flush):
        stopping.aside(lambda: uvloop.run(until_stopped(deployment, is_quiet=quiet)))


def run() -> None:
    """Runs a command, prints its errors, and ends by SystemExit."""
    try:
        status = app(standalone_mode=False)  # a typer.Exit comes back as its status
        if sys.stdout is not None:
            sys.stdout.flush()
        raise SystemExit(status)
    except OSError as error:
        if error.errno not in OUTPUT_FAILS:
            raise
        if error.errno != errno.EPIPE:  # who reads has enough: `disagg logs | head`
            sys.stderr.write(f"{error.filename or 'output'}: cannot be written: {error.strerror}\n")
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is still in the buffer
        raise SystemExit(1) from None
    except typer.Abort:
        raise SystemExit(130) from None
    except ConfigError as error:
        for problem in error.problems:
            sys.stderr.write(f"{problem}\n")
        sys.stderr.write(f"{error.where}: {len(error.problems)} problem(s); nothing was started\n")
        raise SystemExit(2) from None
    except DisaggError as error:
        sys.stderr.write(f"{error.where}: {error.message}\n")
        raise SystemExit(1) from None
    except Exception as error:
        if hasattr(error, "show") and hasattr(error, "exit_code"):  # click's, or of the copy of click in newer typers
            error.show()
            raise SystemExit(error.exit_code) from None
        raise
