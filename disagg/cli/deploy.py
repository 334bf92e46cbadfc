"""`disagg deploy`: renders a configuration for a scheduler. Nothing is written before everything is right.

Way:   YAML -> source -> [slurm, k8s, docker] -> files for sbatch, kubectl, docker; [monitoring] -> Prometheus, Grafana
Fails: ConfigError with all problems of the configuration; StartError when Ray's version is not known, or a file cannot
       be written
"""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from disagg import __version__
from disagg.cli.check import Sets
from disagg.cli.configs import Config
from disagg.deploy.docker import MODELS, render_docker
from disagg.deploy.kubernetes import KubernetesOptions, problems_of_kubernetes, render_kubernetes
from disagg.deploy.monitoring import MonitoringOptions, problems_of_monitoring, render_monitoring
from disagg.deploy.slurm import SlurmOptions, problems_of_slurm, render_slurm
from disagg.deploy.source import read_source
from disagg.errors import ConfigError, StartError

app = typer.Typer(
    help="Render a configuration for SLURM, Kubernetes or Docker; files for Prometheus and Grafana.",
    no_args_is_help=True,
)

Name = Annotated[str | None, typer.Option(help="Of the deployment on its scheduler; else its own.")]
Gpus = Annotated[int | None, typer.Option(min=0, max=1024, help="What a node has: 8 with device: cuda, unless said.")]
Cpus = Annotated[int | None, typer.Option(min=1, max=4096, help="What a node has; else as many as its engines want.")]


@app.command()
def slurm(
    config: Config,
    sets: Sets = None,
    name: Name = None,
    gpus_per_node: Gpus = None,
    cpus_per_node: Cpus = None,
    partition: Annotated[str | None, typer.Option()] = None,
    time: Annotated[str | None, typer.Option(help="The job's limit, as sbatch takes it.")] = None,
    account: Annotated[str | None, typer.Option()] = None,
    sbatch: Annotated[list[str] | None, typer.Option(help="A further #SBATCH option: --sbatch=--qos=high")] = None,
    setup: Annotated[
        list[str] | None, typer.Option(help="A shell line that brings disagg into the PATH: 'source venv/bin/activate'")
    ] = None,
    interface: Annotated[str | None, typer.Option(help="The network interface Ray and the engines use (ib0).")] = None,
    ray_start: Annotated[list[str] | None, typer.Option(help="A further argument of every `ray start`.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Else standard output.")] = None,
) -> None:
    """An sbatch script: `ray start` on every node, then the same `disagg serve`."""
    options = SlurmOptions(
        partition, time, account, tuple(sbatch or ()), tuple(setup or ()), interface, tuple(ray_start or ())
    )
    problems = problems_of_slurm(options)
    source = read_source(
        config, sets or (), problems, name=name, gpus_per_node=gpus_per_node, cpus_per_node=cpus_per_node
    )
    text = render_slurm(source, options)
    if output is None:
        sys.stdout.write(text)
    else:
        _write({output: text})


@app.command()
def k8s(
    config: Config,
    sets: Sets = None,
    name: Name = None,
    gpus_per_node: Gpus = None,
    cpus_per_node: Cpus = None,
    image: Annotated[str, typer.Option(help="What `disagg deploy docker` makes, where the cluster finds it.")] = (
        f"disagg:{__version__}"
    ),
    kind: Annotated[str, typer.Option(help="rayjob, rayservice or both.")] = "both",
    namespace: Annotated[str | None, typer.Option(help="Else the one the YAML says, or kubectl applies to.")] = None,
    ray_version: Annotated[str | None, typer.Option(help="Of the image; else the one installed here.")] = None,
    shm_gib: Annotated[int, typer.Option(min=1, max=4096, help="/dev/shm of an engine pod.")] = 64,
    memory_gib: Annotated[int | None, typer.Option(min=1, help="Of an engine pod; else without a limit.")] = None,
    rdma: Annotated[str | None, typer.Option(help="The RDMA device plugin's resource: rdma/hca, rdma/hca:4")] = None,
    host_network: Annotated[
        bool, typer.Option("--host-network", help="Engine pods use their hosts' interfaces.")
    ] = False,
    model_pvc: Annotated[str | None, typer.Option(help="A claim with the models, readable by many pods.")] = None,
    model_host_path: Annotated[str | None, typer.Option(help="A folder with the models, on each host.")] = None,
    model_mount: Annotated[str, typer.Option(help="Where pods see it.")] = MODELS,
    auth_secret: Annotated[str | None, typer.Option(help="A Secret with auth_token; else KubeRay makes one.")] = None,
    keys_secret: Annotated[
        str | None, typer.Option(help="A Secret with keys.yaml, which is security.keys_file then.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A folder; else standard output.")] = None,
) -> None:
    """KubeRay manifests: ConfigMap, Service, RayJob and RayService."""
    options = KubernetesOptions(
        image=image,
        ray_version=ray_version or _installed_ray(),
        kind=kind,
        namespace=namespace,
        shm_gib=shm_gib,
        memory_gib=memory_gib,
        rdma=rdma,
        host_network=host_network,
        model_claim=model_pvc,
        model_host_path=model_host_path,
        model_mount=model_mount,
        auth_secret=auth_secret,
        keys_secret=keys_secret,
    )
    problems = problems_of_kubernetes(options)
    source = read_source(
        config, sets or (), problems, name=name, gpus_per_node=gpus_per_node, cpus_per_node=cpus_per_node
    )
    texts = render_kubernetes(source, options)
    if output is None:
        sys.stdout.write("---\n".join(texts.values()))
    else:
        _write({output / file: text for file, text in texts.items()})


@app.command()
def docker(
    config: Config,
    sets: Sets = None,
    gpus_per_node: Annotated[int | None, typer.Option(min=0, help="With device: auto; 0 makes the CPU image.")] = None,
    ray_version: Annotated[str | None, typer.Option(help="For the image; else the one installed here.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A file; else standard output.")] = None,
) -> None:
    """A Dockerfile for the deployment's device, and its .dockerignore."""
    source = read_source(config, sets or (), gpus_per_node=gpus_per_node)
    texts = render_docker(source, ray_version or _installed_ray())
    if output is None:
        sys.stdout.write(texts["Dockerfile"])
    else:
        _write({output.with_name(file.replace("Dockerfile", output.name, 1)): text for file, text in texts.items()})


@app.command()
def monitoring(
    target: Annotated[
        list[str] | None, typer.Option(help="HOST:PORT of a deployment's frontends, as Prometheus reaches it.")
    ] = None,
    key_file: Annotated[str, typer.Option(help="Where Prometheus finds a key for /metrics, on its machine.")] = "",
    https: Annotated[
        bool, typer.Option("--https", help="Frontends have TLS; with client_ca, add cert_file and key_file by hand.")
    ] = False,
    ca: Annotated[str, typer.Option(help="Where Prometheus finds who signed their certificate.")] = "",
    ttft_p99_s: Annotated[float, typer.Option(help="Slower first tokens (p99, seconds, below 120) alert.")] = 5.0,
    engine_metrics: Annotated[
        bool, typer.Option("--engine-metrics", help="SGLang's own, too: the deployment has telemetry.engine_metrics.")
    ] = False,
    prometheus: Annotated[str, typer.Option(help="As Grafana reaches it.")] = "http://localhost:9090",
    out: Annotated[Path, typer.Option("--out", "-o", help="A folder.")] = Path("monitoring"),
) -> None:
    """Prometheus' configuration and alerts, and a dashboard with its provisioning for Grafana."""
    options = MonitoringOptions(
        tuple(target or ("127.0.0.1:8000",)),
        key_file,
        https,
        ca,
        ttft_p99_s=ttft_p99_s,
        has_engines=engine_metrics,
        prometheus=prometheus,
    )
    if problems := tuple(problems_of_monitoring(options)):
        raise ConfigError("monitoring", problems)
    _write({out / file: text for file, text in render_monitoring(options).items()})


def _installed_ray() -> str:
    return importlib.metadata.version("ray")


def _write(texts: Mapping[Path, str]) -> None:
    for path, text in texts.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise StartError(str(path), f"cannot be written: {error.strerror}", "name another place with -o") from None
        sys.stderr.write(f"wrote {path}\n")
