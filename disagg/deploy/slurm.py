"""An sbatch script: Ray on every node of the allocation, then the same `disagg serve`.

Way:   Source + SlurmOptions -> [render] -> a file for sbatch; the script's own way is in sbatch.sh
Out:   one self-contained script: the YAML is in it
Fails: problems of the options, before anything is written
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files

from disagg.deploy.source import Source
from disagg.errors import Problem

TIME = r"\d+|\d+:\d\d(:\d\d)?|\d+-\d+(:\d\d){0,2}"
RAY_STOP_S = 30  # what sbatch.sh gives Ray on all nodes once nothing is served
SAID_ONCE = ("--nodes", "--ntasks-per-node", "--signal", "--job-name", "--gpus-per-node", "-N", "-J")


@dataclass(frozen=True, slots=True)
class SlurmOptions:
    partition: str | None = None
    time: str | None = None
    account: str | None = None
    directives: tuple[str, ...] = ()  # further words of #SBATCH lines
    setup: tuple[str, ...] = ()  # shell lines that bring `disagg` and `ray` into the PATH
    interface: str | None = None  # whose address a node has, where the cluster has several networks
    ray_start: tuple[str, ...] = ()  # further arguments of every `ray start`


def problems_of_slurm(options: SlurmOptions) -> Iterator[Problem]:
    if options.time is not None and not re.fullmatch(TIME, options.time):
        yield Problem("--time", f"{options.time!r} is no time of SLURM's", "say minutes, H:MM:SS or D-HH:MM:SS")
    for name in ("partition", "account"):
        value = getattr(options, name)
        if value is not None and not re.fullmatch(r"[\w.,-]+", value):
            yield Problem(
                f"--{name}", f"{value!r} is no name of SLURM's", "use letters, digits, dots, dashes and commas"
            )
    if options.interface is not None and not re.fullmatch(r"[\w.@-]{1,15}", options.interface):
        yield Problem("--interface", f"{options.interface!r} is no network interface", "say one that `ip link` shows")
    for each in options.directives:
        if "\n" in each or not each.startswith("-"):
            yield Problem("--sbatch", f"{each!r} is no option of sbatch", "say one, as --sbatch=--constraint=h200")
        elif each.partition("=")[0].partition(" ")[0] in SAID_ONCE:
            yield Problem("--sbatch", f"{each!r} is decided by the deployment", "leave it out")
    for each in options.setup:
        if "\n" in each:
            yield Problem("--setup", "is several lines", "give --setup once for each")


def render_slurm(source: Source, options: SlurmOptions) -> str:
    filled = {
        "FILE": source.file,
        "DIRECTIVES": "\n".join(f"#SBATCH {each}" for each in _directives(source, options)),
        "SETUP": "\n".join(options.setup) or "# nothing: `disagg` and `ray` are in the PATH of the one who submits",
        "CONFIG": source.text.rstrip("\n"),
        "INTERFACE": shlex.quote(options.interface or ""),
        "RAY_START": "".join(f" {shlex.quote(each)}" for each in options.ray_start),
        "SERVE": shlex.join(source.serve_command("CONFIG", "ray.address=auto")).replace(
            "CONFIG", '"$folder/config.yaml"', 1
        ),
    }
    template = files("disagg.deploy").joinpath("sbatch.sh").read_text(encoding="utf-8")
    return re.sub(r"^# <<(\w+)>>$|<<(\w+)>>", lambda found: filled[found[1] or found[2]], template, flags=re.MULTILINE)


def _directives(source: Source, options: SlurmOptions) -> Iterator[str]:
    yield f"--job-name={source.name}"
    yield f"--nodes={source.node_count}"
    yield "--ntasks-per-node=1"
    yield "--exclusive"
    if source.has_gpus:
        yield f"--gpus-per-node={max(group.gpus for group in source.groups)}"
    yield f"--signal=B:TERM@{source.stop_s + RAY_STOP_S}"  # before the time limit, so that streams end in order
    yield "--no-kill"  # a node that dies takes its engines with it, not the job
    for name in ("partition", "time", "account"):
        if (value := getattr(options, name)) is not None:
            yield f"--{name}={value}"
    yield from options.directives
