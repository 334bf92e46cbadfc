"""How near a simulated deployment comes to real H200s: the cells of benchmarks.gpu.compare, in virtual time.

    python -m benchmarks.step_times [YAML] [--measured JSON] [--setup b]

In:    a YAML that `disagg bench step-times` wrote, and the figures that benchmarks.gpu.compare measured, a card a role
Out:   TTFT and ITL p50 of each cell: measured, simulated, and their ratio
"""

from __future__ import annotations

import argparse
import json
from array import array
from dataclasses import replace
from pathlib import Path
from statistics import median

from disagg.load import load_config
from disagg.replay.deployment import pools_of
from disagg.replay.virtual.served import Served
from disagg.replay.virtual.world import Pool, World
from disagg.routing.policies.least_loaded import LeastLoaded

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "benchmarks" / "data" / "qwen3-8b-h200.yaml"
MEASURED = ROOT / "docs" / "performance" / "h200-2026-11-28.json"
KV_TOKENS = 229_376  # of each engine that was measured
APART_S = 0.001  # between two clients that begin


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("config", type=Path, nargs="?", default=CONFIG)
    parser.add_argument("--measured", type=Path, default=MEASURED)
    parser.add_argument("--setup", default="b", help="of compare's: b is the bare pair, c ours")
    options = parser.parse_args()
    rows = [row for row in json.loads(options.measured.read_bytes())["two-cards-compare"] if row["what"] != "burst"]
    pools = [Pool(replace(pool.model, kv_tokens=KV_TOKENS), 1) for pool in pools_of(load_config(options.config))]
    print(f"{'cell':<14} {'TTFT p50, ms':>22} {'':>6} {'ITL p50, ms':>20}")
    print(f"{'':<14} {'measured':>10} {'simulated':>11} {'ratio':>6} {'measured':>10} {'simulated':>9} {'ratio':>6}")
    for cell in dict.fromkeys((r["what"], *(r["cell"][k] for k in ("concurrency", "prompt", "output"))) for r in rows):
        name, clients, prompt, output = cell
        measured = [row for row in rows if row["what"] == name and row["setup"] == options.setup]
        ttft_ms, itl_ms = (median(row[key]["p50"] for row in measured) for key in ("ttft_ms", "itl_ms"))
        ttft, itl = simulated_ms(pools, clients, prompt, output)
        print(
            f"{name:<14} {ttft_ms:>10.1f} {ttft:>11.1f} {ttft / ttft_ms:>6.2f} {itl_ms:>10.2f} {itl:>9.2f} "
            f"{itl / itl_ms:>6.2f}"
        )


def simulated_ms(pools: list[Pool], clients: int, prompt: int, output: int) -> tuple[float, float]:
    """TTFT and ITL p50 of so many requests that come at once; no two share anything."""
    served = [
        Served(
            number, number * APART_S, prompt, output, output, array("Q", range(number << 32, (number << 32) + 1000)), ""
        )
        for number in range(1, clients + 1)
    ]
    run = World(pools, [LeastLoaded()], seed=0).run(served)
    gaps = [seconds for seconds, count in run.gaps for _ in range(count)]
    return median(s.first_s - s.due_s for s in run.served) * 1e3, median(gaps) * 1e3


if __name__ == "__main__":
    main()
