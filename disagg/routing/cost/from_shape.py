"""How long things may take on engines that nobody has measured yet: from the model's shape and what its devices can do.

Way:   `disagg serve`: plan, model facts, GPU, lane -> [prior_of] -> FrontendSpec -> Surroundings -> Costs
Out:   a Prior; where neither the model's shape nor the GPU is known, the one that fits some 8B model on an H200
Formula, of a rank with g devices (its engine's over its dp ranks), of F operations and M bytes of memory a second each:
  a prompt    STEP_S + weights on a device / M;  a token of it    2 · active parameters / (g · F)
  a token from the host's memory    its bytes on a device / PCIe's, as planning has them
  a pair of tokens (a prompt's area)   4 · heads · width of a head · layers with attention over all / (g · F)
  a step      STEP_S + weights on a device that USUAL_LEGS answers a rank need / M
  a token of KV    its bytes on a device / M
  a byte of a transfer    1 / the slowest lane in use
F and M are what data sheets say times FLOPS_SHARE and MEMORY_SHARE; for KV, KV_SHARE.
"""

from __future__ import annotations

from collections.abc import Sequence

from disagg.models.facts import ModelFacts
from disagg.planning.gpu_kinds import GpuKind
from disagg.planning.lanes import PCIE
from disagg.planning.memory import kv_bytes_of_rank, weight_bytes_of_rank
from disagg.planning.plan import EnginePlan, Plan, complete_arguments
from disagg.role_table import ROLES
from disagg.routing.cost.prior import Prior
from disagg.simulated_engine.model import Model

FLOPS_SHARE, MEMORY_SHARE, KV_SHARE = 0.5, 0.7, 0.3
STEP_S = 0.001  # of SGLang's own, with CUDA graphs
LEG_S = 2e-5
USUAL_LEGS = 16
FP8 = frozenset({"fp8", "int8", "mxfp4", "nvfp4"})  # weights that the tensor cores take at twice the speed, or more
# Of one core, as SGLang uses it.
CORE = GpuKind("core", 0, 0.0, tflops=0.2, memory_gbyte_s=10.0)
CORE_STEP_S = 0.02
TRANSFER_S = 0.003
NO_PRIOR = Prior()


def prior_of(
    plan: Plan, facts: ModelFacts | None, gpus: Sequence[GpuKind] = (), lanes_gbyte_s: Sequence[float] = ()
) -> Prior:
    """`gpus`: those that were found, `lanes_gbyte_s`: the measured ones between engines; the slowest counts."""
    serving = [engine for engine in plan.engines if not ROLES[engine.role].embeds]
    readers = [engine for engine in serving if ROLES[engine.role].reads_prompts]
    decodes = [engine for engine in serving if ROLES[engine.role].makes_tokens]
    if not readers or not decodes:
        return NO_PRIOR
    if plan.device == "simulated":
        return _simulated(readers[0], decodes[0])
    known = [gpu for gpu in gpus if gpu.tflops]
    if facts is None or (plan.device == "cuda" and not known):
        return NO_PRIOR
    device = min(known, key=lambda gpu: gpu.tflops) if plan.device == "cuda" else CORE
    reader, decode = (_Speed(plan, engine, facts, device) for engine in (readers[0], decodes[0]))
    slowest = min([gbyte_s for gbyte_s in lanes_gbyte_s if gbyte_s > 0], default=0.0)
    return Prior(
        read_prompt_s=reader.step_s + reader.weights_s(USUAL_LEGS**2),
        read_token_s=reader.token_s,
        read_area_s=reader.pair_s,
        read_loaded_s=reader.loaded_s,
        step_s=decode.step_s + decode.weights_s(USUAL_LEGS),
        step_leg_s=LEG_S + decode.token_s,
        step_token_s=decode.kv_token_s,
        transfer_s=TRANSFER_S,
        transfer_byte_s=1e-9 / slowest if slowest else NO_PRIOR.transfer_byte_s,
        kv_bytes_per_token=max(1, facts.kv_bytes_per_token()),
    )


class _Speed:
    """Of one dp rank of an engine. SGLang shares an engine's experts out over all of its devices, and each dp rank's
    tokens go through them: on average a dp rank has its share of the devices."""

    def __init__(self, plan: Plan, engine: EnginePlan, facts: ModelFacts, device: GpuKind) -> None:
        self._facts, arguments = facts, complete_arguments(plan, engine)
        on_gpu = device is not CORE
        devices = engine.ranks if on_gpu else max(1.0, engine.cpus * engine.nodes)
        share, self._dp_ranks = devices / engine.dp_ranks, engine.dp_ranks
        quick = 2.0 if on_gpu and facts.quantisation in FP8 else 1.0
        self._flops = share * device.tflops * 1e12 * FLOPS_SHARE * quick
        self.step_s = STEP_S if on_gpu else CORE_STEP_S
        bytes_s = device.memory_gbyte_s * 1e9 * (1.0 if on_gpu else max(1.0, devices / engine.ranks))
        self._kv_bytes = kv_bytes_of_rank(arguments, facts, 1)
        self.kv_token_s = self._kv_bytes / (bytes_s * KV_SHARE)
        self._all_weights_s = weight_bytes_of_rank(arguments, facts) / (bytes_s * MEMORY_SHARE)
        parts = facts.parameters
        self._routed_share = facts.experts_per_token / facts.experts if facts.experts else 1.0
        self._active = parts.attention + parts.dense + parts.shared + parts.router + parts.routed * self._routed_share

    @property
    def token_s(self) -> float:
        return 2 * self._active / self._flops

    @property
    def loaded_s(self) -> float:
        return self._kv_bytes / (PCIE.gbyte_s * 1e9)

    @property
    def pair_s(self) -> float:
        f = self._facts
        return 4 * f.heads * f.head_dim * (f.layers - f.linear_layers - f.sliding_layers) / self._flops

    def weights_s(self, tokens: int) -> float:
        """To have all weights read once that so many tokens on each dp rank need: of the experts the more, the more
        tokens."""
        untouched = (1 - self._routed_share) ** (tokens * self._dp_ranks)
        weights = self._facts.weights
        return self._all_weights_s * (1 - untouched * weights.routed / max(1, weights.total))


def _simulated(reader: EnginePlan, decode: EnginePlan) -> Prior:
    read, step = (Model(role=each.role, **each.engine) for each in (reader, decode))
    return Prior(
        read_prompt_s=read.step_s / read.speed,
        read_token_s=read.prefill_token_s / read.speed,
        read_area_s=read.prefill_attention_s / read.speed,
        step_s=step.step_s / step.speed,
        step_leg_s=step.step_leg_s / step.speed,
        step_token_s=step.step_context_s / step.speed,
        transfer_s=read.transfer_setup_s / read.speed,
        transfer_byte_s=1 / read.transfer_bytes_per_s / read.speed,
        kv_bytes_per_token=read.kv_bytes_per_token,
    )
