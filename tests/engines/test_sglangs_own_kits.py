"""SGLang's own test kits, as its wheel ships them, against prefill + decode.

They want a model that can answer, and get the taught one (taught_model.py). test_same_answers.py keeps the model as it
was: to some of its questions the taught one gave SGLang's server another token than ours.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

import pytest
from deployment import Deployment, serving
from taught_model import TEMPLATE, taught_model

from disagg.cpu_profile.paths import standin_environment
from tests.todays import todays

pytestmark = pytest.mark.timeout(1200)  # a model is taught, one deployment starts, and all kits ask it; on busy cores
CONTRACT = "basic_api_contract_kit.BasicAPIContractMixin"  # waits a minute for a health check
STRESS = "basic_scheduler_stress_kit.BasicSchedulerStressMixin"  # 8,000 tokens, a minute, while no other prompt is read
KITS = [
    CONTRACT,
    "matched_stop_kit.MatchedStopMixin",
    "regex_constrained_kit.RegexConstrainedMixin",
    "ebnf_constrained_kit.EBNFConstrainedMixin",
    "json_constrained_kit.JSONConstrainedMixin",
    "json_mode_kit.JSONModeMixin",
    STRESS,
    "anthropic_messages_kit.AnthropicMessagesMixin",
]
TODAYS = todays(KITS, 4)
KIT_S = 500


@pytest.fixture(scope="module")
def pair() -> Iterator[Deployment]:
    sets = [f"model.path={taught_model()}", "model.name=smollm2", f"model.chat_template={TEMPLATE}"]
    sets.append("deadlines.queue_s=300")
    with serving("local-cpu", "ray.address=local", *sets) as deployment:
        yield deployment


@pytest.fixture(scope="module")
def kits(pair: Deployment) -> Iterator[dict[str, Future[subprocess.CompletedProcess[str]]]]:
    """All of today run at once, but STRESS once CONTRACT has ended."""
    environment = standin_environment(os.environ) | {"SGLANG_USE_CPU_ENGINE": "1", "HF_HUB_OFFLINE": "1"}

    def run(mixin: str) -> subprocess.CompletedProcess[str]:
        if mixin == STRESS:
            wait([started[each] for each in (CONTRACT,) if each in started])
        words = [sys.executable, str(Path(__file__).parent / "sglang_kit.py"), mixin, pair.url, "smollm2"]
        return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=KIT_S, check=False)

    started: dict[str, Future[subprocess.CompletedProcess[str]]] = {}
    with ThreadPoolExecutor(len(KITS)) as threads:
        for mixin in TODAYS:
            started[mixin] = threads.submit(run, mixin)
        yield started


@pytest.mark.parametrize("mixin", TODAYS)
def test_a_kit_passes(kits: dict[str, Future[subprocess.CompletedProcess[str]]], mixin: str) -> None:
    ran = kits[mixin].result()
    assert ran.returncode == 0, ran.stderr[-3000:]
