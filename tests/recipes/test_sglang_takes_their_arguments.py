"""SGLang reads the command line of every member of every engine as it is meant, and its own resolution takes it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from disagg.cpu_profile.paths import standin_environment
from disagg.models.published import published
from disagg.sglang.arguments import Ports, member_arguments
from disagg.sglang.releases import RELEASES
from tests.config.sglang_asked import misread
from tests.config.sglang_parser import parser_of
from tests.recipes.catalogue import RECIPES, plan_of

UPSTREAM = Path(__file__).parents[1] / "preflight" / "upstream.py"
ON_GPUS = [recipe for recipe in RECIPES if plan_of(recipe).device == "cuda"]
OF_THE_CPU_PROFILE = "0.5.20"  # the one release that runs without a GPU
LIMIT_S = 240
# The only thing SGLang says against them where there is no GPU.
NEEDS_BLACKWELL = "TRTLLM MLA backend is only supported on Blackwell"


@pytest.mark.parametrize("version", RELEASES)
def test_every_supported_release_reads_their_command_lines_as_meant(version: str) -> None:
    parser = parser_of(version)
    recipes = RECIPES if version == OF_THE_CPU_PROFILE else ON_GPUS
    lines = [line for recipe in recipes for line in members(recipe)]
    assert len(lines) > 2 * len(recipes)
    assert [wrong for name, arguments in lines for wrong in misread(parser, name, arguments, version)] == []


@pytest.mark.engine
def test_the_installed_release_resolves_their_arguments(tmp_path: Path) -> None:
    """As `sglang.Engine(**arguments)` begins, with the model's config.json and without its weights."""
    lines = {name: arguments for recipe in ON_GPUS for name, arguments in members(recipe, tmp_path)}
    asked = json.dumps([["server_args", [arguments]] for arguments in lines.values()])
    environment = standin_environment(os.environ | {"SGLANG_USE_CPU_ENGINE": "1", "HF_HUB_OFFLINE": "1"})
    program = [sys.executable, "-W", "ignore", str(UPSTREAM)]
    done = subprocess.run(program, input=asked, capture_output=True, text=True, timeout=LIMIT_S, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    answers = dict(zip(lines, json.loads(done.stdout.splitlines()[-1]), strict=True))
    said = {name: answer for name, answer in answers.items() if answer}
    assert all(NEEDS_BLACKWELL in answer for answer in said.values()), said
    assert {name.partition(",")[0] for name in said} == {"deepseek-gb200-nvl72 decode-0"}


def members(recipe: str, models: Path | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, complete arguments) of each engine's members; with a folder that holds the model's config.json."""
    plan, ports = plan_of(recipe), Ports.from_first(30000)
    path = plan.model.path if models is None else str(folder_of(plan.model.path, models))
    for engine in plan.engines:
        first = engine.arguments(device=plan.device, model_path=path, host="127.0.0.1", ports=ports)
        for index in range(engine.nodes):
            own = member_arguments(first, member=index, members=engine.nodes, host="127.0.0.1", ports=ports)
            yield f"{recipe} {engine.id}, member {index}", own


def folder_of(model: str, models: Path) -> Path:
    """A model that the table does not know has the shape of the one it is named after."""
    entry = published(model) or published("deepseek-ai/DeepSeek-R1")
    assert entry is not None
    folder = models / model.replace("/", "--")
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(entry["config"]))
    return folder
