"""All results so far in one file: {stage: what it wrote}.

Run:   python3 -m benchmarks.gpu.collect FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.gpu.places import RESULTS


def collect(results: Path = RESULTS) -> dict[str, Any]:
    return {path.stem: json.loads(path.read_bytes()) for path in sorted(results.glob("*.json"))}


if __name__ == "__main__":
    (Path(sys.argv[1]) / "results.json").write_text(json.dumps(collect(), indent=1), encoding="utf-8")
