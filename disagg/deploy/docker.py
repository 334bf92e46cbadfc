"""A Dockerfile for the deployment's device, with the YAML in it, and what its build context leaves out.

Way:   Source -> [render] -> Dockerfile and Dockerfile.dockerignore -> `docker build -f Dockerfile CHECKOUT`
Out:   an image for `docker run` and for KubeRay alike: disagg, SGLang, Ray and no model
Fails: never; `disagg serve` in the container reports what the image lacks
"""

from __future__ import annotations

import json
from importlib.resources import files

from disagg.deploy.source import Source

CONFIG = "/etc/disagg/config.yaml"
MODELS = "/models"  # where the image looks for what is fetched: a volume, so that it outlives the container
# Both are tags of their publisher that are not moved. SGLang's image has DeepEP and the RDMA user space besides.
CUDA_SGLANG = "0.5.19"
CUDA_BASE = f"lmsysorg/sglang:v{CUDA_SGLANG}-cu129"
CPU_BASE = "python:3.11.14-slim-bookworm"
FILES = ("pyproject.toml", "README.md", "LICENSE", "disagg_start.py")  # what the wheel is built from, with these:
FOLDERS = ("configs", "disagg", "prefill", "decode", "transfer")


def render_docker(source: Source, ray_version: str) -> dict[str, str]:
    """File name -> text."""
    plan = source.plan
    command = source.serve_command(CONFIG, "frontend.host=0.0.0.0")
    filled = {
        "FILE": source.file,
        "BASE": CUDA_BASE if source.has_gpus else CPU_BASE,
        "SGLANG": CUDA_SGLANG,
        "RAY": ray_version,
        "FILES": " ".join(f"./{each}" for each in FILES),
        "MODELS": MODELS,
        "CONFIG": source.text.rstrip("\n"),
        "CONFIG_PATH": CONFIG,
        "PORT": str(plan.frontend.port),
        "START_S": f"{plan.deadlines.start_s:.0f}",
        "COMMAND": json.dumps(command),
    }
    template = "cuda.Dockerfile" if source.has_gpus else "cpu.Dockerfile"
    text = files("disagg.deploy").joinpath(template).read_text(encoding="utf-8")
    for name, value in filled.items():
        text = text.replace(f"@{name}@", value)
    ignored = ["# Only this goes to the build.", "*", *(f"!{each}" for each in (*FILES, *FOLDERS)), "**/__pycache__"]
    return {"Dockerfile": text, "Dockerfile.dockerignore": "\n".join(ignored) + "\n"}
