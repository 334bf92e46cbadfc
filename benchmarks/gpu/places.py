"""Where the stages find and leave things, and what they run on: a GPU machine, or this one's cores for trying them.

Owns:  the state folder ($BENCH_STATE): servers that outlive a call, results, logs, models
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from disagg.sglang.arguments import DEVICE_DEFAULTS

PROJECT = Path(__file__).absolute().parents[2]
STATE = Path(os.environ.get("BENCH_STATE", "/tmp/disagg-gpu"))
RESULTS = STATE / "results"
LOGS = STATE / "logs"
# Of compare, which says more of each.
SETUPS = {"a": "bare, aggregated", "b": "bare, PD", "c": "ours, PD", "d": "ours, aggregated", "u": "ours, PD, unpaced"}


@dataclass(frozen=True)
class Cell:
    """Requests at once; tokens in and out of each; how many requests a round, and how many rounds."""

    concurrency: int
    prompt: int
    output: int
    requests: int
    rounds: int = 5

    @property
    def name(self) -> str:
        return f"c{self.concurrency} {self.prompt}/{self.output}"


@dataclass(frozen=True)
class Burst:
    streams: int
    prompt: int
    output: int
    burst: int
    burst_prompt: int
    before_s: float  # the streams run alone


@dataclass(frozen=True)
class Profile:
    device: str
    config: str  # the shipped configuration with a prefill and a decode engine
    sets: tuple[str, ...]  # of every deployment
    token_models: tuple[str, ...]
    prompt_tokens: tuple[int, ...]
    answer_tokens: int
    kill_tokens: int
    kill_sets: tuple[str, ...]  # a second decode engine beside the first
    shape: str
    shape_engine: dict[str, Any]
    cells: tuple[Cell, ...]
    burst: Burst
    random_requests: int = 600
    engine: dict[str, Any] = field(default_factory=dict)  # of every engine of every deployment
    environment: dict[str, str] = field(default_factory=dict)  # of bare SGLang servers
    ours_environment: dict[str, str] = field(default_factory=dict)  # of our deployments
    tokens_sets: tuple[str, ...] = ()  # of tokens' deployments
    cards: int = 1
    setups: tuple[str, ...] = ("a", "b", "c", "d")  # of compare
    shares_cards: bool = False  # every engine has all cards, a rank on each
    prefix: str = ""  # of the names of servers and results


def shipped_engine(config: str) -> dict[str, Any]:
    """The engine arguments of a shipped configuration, which are the same for both its roles."""
    tree = yaml.safe_load((PROJECT / "configs" / config).read_text(encoding="utf-8"))
    prefill, decode = (dict(tree[role]["engine"]) for role in ("prefill", "decode"))
    if prefill != decode:
        raise ValueError(f"configs/{config}: prefill's engine arguments are not decode's; which are to be measured?")
    return prefill


GPU = Profile(
    device="cuda",
    config="one-gpu.yaml",
    sets=("ray.cpus=8", "ray.gpus=1"),  # Ray starts a worker for each CPU
    token_models=("smollm2", "tiny-dsv3gpu"),
    prompt_tokens=(30, 46, 100, 257, 512, 777, 1024, 1500, 2048, 2500),
    answer_tokens=64,
    kill_tokens=400,
    kill_sets=("decode.replicas=2", "prefill.resources.gpus=0.3", "decode.resources.gpus=0.3"),
    shape="qwen3-8b",
    # As shipped, but for: a pool that six engines can have on one card (15.7 GB), and a fraction so high that the
    # neighbours' memory never refuses a start.
    shape_engine=shipped_engine("one-gpu.yaml")
    | {
        "mem_fraction_static": 0.95,
        "max_total_tokens": 106496,
        "chunked_prefill_size": 8192,
        "load_format": "dummy",
    },
    cells=(
        Cell(1, 2000, 128, 2),
        Cell(1, 8000, 64, 2),
        Cell(16, 2000, 128, 16),
        Cell(16, 8000, 64, 16),
        Cell(64, 2000, 128, 64),
        Cell(64, 8000, 64, 64),
    ),
    burst=Burst(streams=8, prompt=500, output=600, burst=3, burst_prompt=16000, before_s=1.5),
)
# A card for each role. No a: two bare aggregated servers would need a router.
TWO_GPUS = replace(
    GPU,
    config="two-gpus.yaml",
    sets=("ray.cpus=14", "ray.gpus=2"),
    engine={"attention_backend": "triton", "sampling_backend": "pytorch"},  # the bundle leaves out SGLang's defaults
    kill_sets=(
        # Two decode engines on one card: as configs/one-gpu.yaml.
        "prefill.engine.max_total_tokens=262144",
        "decode.engine.max_total_tokens=262144",
        "decode.engine.mem_fraction_static=0.85",
        "decode.replicas=2",
        "decode.resources.gpus=0.5",
    ),
    shape_engine=GPU.shape_engine | {"max_total_tokens": 229376},  # three engines a card
    cells=tuple(replace(cell, rounds=3) for cell in GPU.cells),
    cards=2,
    setups=("b", "c", "d"),
    prefix="two-cards-",
)
# Experts and DP attention: both roles on both cards, a rank of each role on a card. Ray counts whole cards for an
# engine of several ranks, so it is told of more than there are, and engines see all of them.
MOE = replace(
    TWO_GPUS,
    config="moe-4gpus.yaml",
    sets=("ray.cpus=16", "ray.gpus=4", "model.trust_remote_code=false"),
    token_models=("tiny-dsv3gpu",),
    engine={
        "ep_size": 2,
        "attention_backend": "triton",
        "sampling_backend": "pytorch",
        "mem_fraction_static": 0.85,
        "max_total_tokens": 65536,
        "disable_prefill_cuda_graph": True,
    },
    tokens_sets=("routing.policy=random",),  # so that each prefill rank meets each decode rank
    kill_sets=("decode.replicas=2", "ray.gpus=6"),
    shape="deepseek-v3",
    shape_engine=shipped_engine("moe-4gpus.yaml")
    | {
        "mem_fraction_static": 0.95,
        "max_total_tokens": 300_032,
        "max_running_requests": 256,  # of both ranks
        "cuda_graph_max_bs_decode": 128,
        "chunked_prefill_size": 16384,  # of both ranks
        "disable_prefill_cuda_graph": True,
        "load_format": "dummy",
    },
    cells=(
        Cell(1, 2000, 128, 2, 2),
        Cell(1, 8000, 64, 2, 2),
        Cell(16, 2000, 128, 16, 2),
        Cell(16, 8000, 64, 16, 2),
        Cell(64, 2000, 128, 64, 2),
        Cell(64, 8000, 64, 64, 2),
        Cell(256, 2000, 128, 256, 2),
        Cell(256, 8000, 64, 256, 1),
    ),
    ours_environment={"RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1"},
    shares_cards=True,
    setups=("b", "c"),
    prefix="moe-",
)
CPU = Profile(
    device="cpu",
    config="local-cpu.yaml",
    sets=(),
    token_models=("tiny-qwen3moe",),
    prompt_tokens=(30, 100),
    answer_tokens=8,
    kill_tokens=200,
    kill_sets=("decode.replicas=2", "ray.cpus=3"),
    shape="tiny",
    shape_engine=DEVICE_DEFAULTS["cpu"] | {"page_size": 16, "load_format": "dummy"},
    cells=(Cell(1, 64, 8, 2, 2), Cell(4, 64, 8, 8, 2)),
    burst=Burst(streams=2, prompt=32, output=150, burst=2, burst_prompt=1000, before_s=0.3),
    random_requests=60,
    environment={"SGLANG_USE_CPU_ENGINE": "1", "OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"},
)


def profile() -> Profile:
    said = os.environ.get("BENCH_DEVICE") or ("cuda" if shutil.which("nvidia-smi") else "cpu")
    found = {"cuda": GPU, "cuda x 2": TWO_GPUS, "cuda x 2 moe": MOE, "cpu": CPU}[said]
    sets = (*found.sets, *os.environ.get("BENCH_SETS", "").split())
    found = replace(found, shape=os.environ.get("BENCH_SHAPE") or found.shape, sets=sets)
    setups = tuple(os.environ.get("BENCH_SETUPS") or found.setups)
    if unknown := sorted(set(setups) - set(SETUPS)):
        raise SystemExit(f"BENCH_SETUPS: no setup is called {', '.join(unknown)}; say some of {''.join(SETUPS)}")
    return replace(found, setups=setups)


def aggregated_config(split: str) -> str:
    """A file beside the logs: the shipped configuration with its prefill engine's arguments on an aggregated one."""
    tree = yaml.safe_load((PROJECT / "configs" / split).read_text(encoding="utf-8"))
    tree["aggregated"] = tree.pop("prefill")
    del tree["decode"]
    LOGS.mkdir(parents=True, exist_ok=True)
    path = LOGS / f"aggregated-{split}"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return str(path)


def results_path(name: str) -> Path:
    RESULTS.mkdir(parents=True, exist_ok=True)
    return RESULTS / f"{profile().prefix}{name}"


def write_result(name: str, data: Any) -> None:
    """Whole or not at all: a stage that is stopped keeps what it wrote before."""
    path = results_path(f"{name}.json")
    new = path.with_name(f".{path.name}.new")
    new.write_text(json.dumps(data, indent=1), encoding="utf-8")
    new.rename(path)
