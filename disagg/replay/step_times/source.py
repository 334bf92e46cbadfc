"""Where step times come from: the measured operator tables of the package aiconfigurator(-core), behind one interface.

Way:   [Source] -> cli_estimate of aiconfigurator, which adds operators up -> seconds of a step -> fit.py
In:    a model by its Hugging Face name, a GPU by the package's name for it, a layout of one dp rank
Fails: StartError where the package is missing (our extra `planner`), or knows no such model or GPU
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from disagg.errors import StartError

PACKAGE = "aiconfigurator"
MEMORY_SHARE = 0.88  # of a GPU, for weights, KV and activations: SGLang's mem_fraction_static, about


@dataclass(frozen=True, slots=True)
class Layout:
    """GPUs of an engine: `tp` for each dp rank's attention times `dp` ranks; experts over `ep` of them."""

    tp: int = 1
    dp: int = 1
    ep: int = 0  # 0: a dense model, or as the package chooses


@dataclass(frozen=True, slots=True)
class Memory:
    """Of one dp rank, on each of its GPUs."""

    kv_tokens: int
    kv_bytes_per_token: int  # over all GPUs of the rank


class Source:
    """`model` on `gpu` (such as h200_sxm), by SGLang's tables. Each answer takes about a second."""

    def __init__(self, model: str, gpu: str, layout: Layout) -> None:
        """Raises StartError."""
        self.model, self.gpu, self.layout = model, gpu, layout
        self._estimate = _estimate_function()
        self.tables = str(self._ask("static_gen", isl=16, osl=2, batch_size=1).backend_version)

    @property
    def name(self) -> str:
        return f"{PACKAGE} {version(PACKAGE)}, tables of SGLang {self.tables}"

    def prefill_s(self, tokens: int, before: int) -> float:
        """A step that reads `tokens` of a prompt, after `before` others of it."""
        asked = {"isl": tokens + before, "prefix": before, "osl": 1, "batch_size": 1}
        return float(self._ask("static_ctx", **asked).ttft) / 1e3

    def decode_s(self, legs: int, context_tokens: int) -> float:
        """A decode step of so many legs, each of whose KV has `context_tokens`."""
        return float(self._ask("static_gen", isl=context_tokens, osl=2, batch_size=legs).tpot) / 1e3

    def memory(self, chunk_tokens: int) -> Memory:
        """What SGLang leaves for KV beside the weights. Raises StartError."""
        from aiconfigurator_core.sdk.memory import estimate_kv_cache

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = estimate_kv_cache(
                    self.model,
                    self.gpu,
                    "sglang",
                    self.tables,
                    max_num_tokens=chunk_tokens,
                    max_batch_size=1,
                    memory_fraction_kind="of_total",
                    memory_fraction_value=MEMORY_SHARE,
                    **self._layout,
                )
            tokens, on_a_gpu = int(found["total_kv_size_tokens"]), found["kv_size_per_token_bytes"]
        except Exception as error:
            raise self._unknown(error) from error
        if tokens < chunk_tokens:
            raise StartError(self.gpu, f"{self.model} leaves no room for KV", "give it more GPUs: --tp, --dp, --ep")
        return Memory(tokens, round(on_a_gpu * self.layout.tp))

    @property
    def _layout(self) -> dict[str, int]:
        layout = self.layout
        experts = {"moe_tp_size": layout.tp * layout.dp // layout.ep, "moe_ep_size": layout.ep} if layout.ep else {}
        return {"tp_size": layout.tp, "attention_dp_size": layout.dp, **experts}

    def _ask(self, mode: str, **asked: int) -> Any:
        """Raises StartError."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return self._estimate(self.model, self.gpu, mode=mode, backend_name="sglang", **self._layout, **asked)
        except Exception as error:
            raise self._unknown(error) from error

    def _unknown(self, error: Exception) -> StartError:
        what = f"{PACKAGE} cannot tell its step times on {self.gpu}: {error}"
        return StartError(self.model, what[:500], f"`{PACKAGE} cli support` says what it knows")


def _estimate_function() -> Callable[..., Any]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from aiconfigurator.cli.api import cli_estimate
    except ImportError as error:
        would_do = "pip install '.[planner]' in a checkout, best into an environment of its own"
        raise StartError("step times", f"the package {PACKAGE} is not installed: {error}", would_do) from error
    for name in (PACKAGE, f"{PACKAGE}_core"):
        logging.getLogger(name).setLevel(logging.ERROR)
    estimate: Callable[..., Any] = cli_estimate
    return estimate
