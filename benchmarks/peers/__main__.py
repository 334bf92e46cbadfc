"""`python -m benchmarks.peers`: installs the peers, confines itself, measures, prints one table, writes JSON.

--quick            fewer rounds and shorter ones (under four minutes)
--only ours,smg    these alone; also `dynamo-fastokens`, and `worker` for no frontend at all
--out FILE         the JSON: every round's values, versions, machine (default build/peers.json)
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import os
import platform
import resource
import subprocess
import sys
import time
from dataclasses import asdict
from importlib.metadata import version as installed_version
from pathlib import Path
from statistics import median

from benchmarks.peers.confine import NotConfined, confine
from benchmarks.peers.deployments import KNOWN
from benchmarks.peers.install import NotInstalled, install, version
from benchmarks.peers.rounds import FULL, QUICK, Results, measure_all
from benchmarks.peers.table import table
from disagg.models.resolve import resolve_model

QUIET = 0.1
LEFT_OUT_WHEN_QUICK = ("dynamo-fastokens",)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds and shorter ones")
    parser.add_argument("--only", type=_names, help=f"of {','.join(KNOWN)}")
    parser.add_argument("--out", type=Path, default=Path("build/peers.json"), help="where the JSON goes")
    arguments = parser.parse_args()
    names = arguments.only or [name for name in KNOWN if not (arguments.quick and name in LEFT_OUT_WHEN_QUICK)]
    began_s = time.monotonic()

    model_path = Path(resolve_model("smollm2"))
    commit = _commit()
    pythons, missing = _installed(names)
    try:
        confine()
    except NotConfined as error:
        raise SystemExit(f"nothing was started: {error}") from None
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

    import uvloop

    extent = QUICK if arguments.quick else FULL
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        results = runner.run(measure_all(pythons, model_path, extent))
    for name, why in missing.items():
        results.note(name, f"not measured: {why}")
    summaries = {name: results.summary(name) for name in names}
    print(table(names, summaries, results.notes))
    machine = _machine()
    took_s = time.monotonic() - began_s
    told = ", ".join(" ".join(pair) for pair in _versions(names).items())
    print(f"\n{extent.rounds} rounds in {took_s:.0f} s; {machine['cpu']}, {machine['cores']} cores; {told}")
    median_share, worst_share = median(results.others), max(results.others)
    print(f"other processes took {median_share:.0%} of the cores (worst round {worst_share:.0%})", end="")
    print("" if worst_share < QUIET else ": too much to trust what saturates them")
    record = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit,
        "command": "python -m benchmarks.peers" + (" --quick" if arguments.quick else ""),
        "machine": machine,
        "versions": _versions(names),
        "extent": asdict(extent),
        "medians": summaries,
        "notes": results.notes,
        "others_share_of_cores": results.others,
        "rounds": _rounds(results),
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(record, indent=1) + "\n")
    print(f"all values: {arguments.out}")


def _names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in KNOWN]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(KNOWN)}")
    return names


def _installed(names: list[str]) -> tuple[dict[str, Path], dict[str, str]]:
    pythons, missing = {}, {}
    for name in names:
        environment = KNOWN[name].environment
        try:
            pythons[name] = install(environment) if environment else Path(sys.executable)
        except NotInstalled as error:
            missing[name] = str(error)
    return pythons, missing


def _versions(names: list[str]) -> dict[str, str]:
    versions = {"disagg": installed_version("disagg"), "python": platform.python_version()}
    return versions | {peer: version(peer) for name in names if (peer := KNOWN[name].environment)}


def _machine() -> dict[str, str]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
    cores = str(len(os.sched_getaffinity(0)))
    return {"cpu": model, "cores": cores, "kernel": platform.release()}


def _commit() -> str:
    done = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True)
    return done.stdout.strip()


def _rounds(results: Results) -> dict[str, dict[str, list[float]]]:
    """TTFTs are thousands: their percentiles are enough."""
    return {
        name: {metric: values for metric, values in metrics.items() if not metric.startswith("ttft")}
        for name, metrics in results.values.items()
    }


if __name__ == "__main__":
    main()
