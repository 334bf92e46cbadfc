"""Every policy on public traces, side by side: 8 prefill and 8 decode engines of 4 dp ranks each, in virtual time.

    python -m benchmarks.policies TRACE... [--loads 0.5,0.7,0.9,1.0,1.2] [--seeds 5] [--requests 2500] [--processes 1]
                                           [--frontends 1] [--policies all] [--on YAML] [--out FOLDER]

In:    traces that `disagg bench replay` reads; step times of a named source (benchmarks/data/qwen3-8b-h200.yaml)
Out:   a table a trace; with --out, JSON and a picture of each, named as the trace. All rows of a load and a seed have
       the same requests. Half a second of a core a thousand requests; more where a policy holds prompts back, as it is
       asked about each of those that wait with every change
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from disagg.load import load_config
from disagg.policy_names import SHIPPED
from disagg.replay.compare import Load, Row, compare
from disagg.replay.deployment import pools_of
from disagg.replay.measures import Slo
from disagg.replay.simulate import Setting, Simulation
from disagg.replay.told import as_tree, picture, table, warnings
from disagg.replay.traces.read import read_trace

CONFIG = Path(__file__).parent / "data" / "qwen3-8b-h200.yaml"
ENGINES = [f"{role}.{value}" for role in ("prefill", "decode") for value in ("replicas=8", "engine.ranks=4")]
SLO = Slo(ttft_s=2.0, itl_s=0.05)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("traces", type=Path, nargs="+")
    parser.add_argument("--loads", default="0.5,0.7,0.9,1.0,1.2", help="shares of what least_loaded carries")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=2500)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--frontends", type=int, default=1)
    parser.add_argument("--policies", default="all", help="comma-separated")
    parser.add_argument("--on", type=Path, default=CONFIG)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    policies = list(SHIPPED) if options.policies == "all" else options.policies.split(",")
    pools = pools_of(load_config(options.on, ENGINES))
    for path in options.traces:
        began_s = time.monotonic()
        setting = Setting(read_trace(path), pools, options.requests, options.frontends, SLO)
        capacity = Simulation(setting).capacity()
        print(f"\n# {path.name}: carries {capacity:.3g} requests/s with least_loaded", flush=True)
        loads = [Load(f"load {float(load):g}", float(load) * capacity) for load in options.loads.split(",")]
        rows = compare(
            setting, policies, loads, range(1, options.seeds + 1), processes=options.processes, said=said(began_s)
        )
        print("\n".join([*table(rows), *(f"WARNING: {line}" for line in warnings(rows))]))
        print(f"{len(rows)} runs in {time.monotonic() - began_s:.0f} s", flush=True)
        if options.out:
            options.out.mkdir(parents=True, exist_ok=True)
            name = path.name.partition(".")[0]
            (options.out / f"{name}.json").write_text(f"{json.dumps(as_tree(setting, capacity, rows), indent=1)}\n")
            (options.out / f"{name}.svg").write_text(picture(rows))


def simulation_of(trace: Path, requests: int) -> Simulation:
    """Of the deployment above, with one frontend."""
    return Simulation(Setting(read_trace(trace), pools_of(load_config(CONFIG, ENGINES)), requests, 1, SLO))


def said(began_s: float):  # type: ignore[no-untyped-def]
    def say(row: Row) -> None:
        print(f"{time.monotonic() - began_s:6.0f} s {row.load.name} seed {row.seed} {row.policy}", file=sys.stderr)

    return say


if __name__ == "__main__":
    main()
