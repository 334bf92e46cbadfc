"""What a planted mistake is, and the good configurations it is planted in.

The list is planted.yaml. Models are named as the package's own table has them: nothing is fetched.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from disagg.load import parse_config
from disagg.models.adapters import AdapterFiles
from disagg.models.facts import ModelFacts, find_facts
from disagg.planning.cluster_shape import ClusterShape, Nic, parse_shape
from disagg.planning.gpu_kinds import GPU_KINDS
from disagg.planning.plan import Plan, device_of, resolve
from disagg.preflight.node_facts import MeasuredLane, ModelFiles, NodeFacts, described

BASES = {
    "llama": """
version: 1
device: cuda
model: {path: meta-llama/Llama-3.3-70B-Instruct}
prefill: {engine: {tp_size: 4, page_size: 16, chunked_prefill_size: 8192}}
decode: {engine: {tp_size: 4, page_size: 16, max_running_requests: 256}}
""",
    "deepseek": """
version: 1
device: cuda
model: {path: deepseek-ai/DeepSeek-V3}
prefill:
  nodes: 2
  env: {SGLANG_DEEPEP_NUM_MAX_DISPATCH_TOKENS_PER_RANK: 256}
  engine: &engine
    tp_size: 16
    dp_size: 16
    enable_dp_attention: true
    moe_a2a_backend: deepep
    deepep_mode: normal
    page_size: 64
    chunked_prefill_size: 131072
    moe_dense_tp_size: 1
    enable_dp_lm_head: true
    context_length: 65536
decode:
  nodes: 2
  env: {SGLANG_DEEPEP_NUM_MAX_DISPATCH_TOKENS_PER_RANK: 256}
  engine:
    <<: *engine
    deepep_mode: low_latency
    max_running_requests: 4096
    cuda_graph_max_bs_decode: 256
    enable_eplb: true
    ep_num_redundant_experts: 32
""",
    "deepseek_whole": """
version: 1
device: cuda
model: {path: deepseek-ai/DeepSeek-V3}
aggregated:
  nodes: 2
  engine:
    tp_size: 16
    dp_size: 16
    enable_dp_attention: true
    moe_a2a_backend: deepep
    deepep_mode: normal
    disable_cuda_graph: true
    page_size: 64
    context_length: 65536
""",
    "gpt_oss": """
version: 1
device: cuda
model: {path: openai/gpt-oss-120b}
prefill: {engine: {tp_size: 4, page_size: 64}}
decode: {engine: {tp_size: 4, page_size: 64}}
""",
    "small": """
version: 1
device: cuda
model: {path: meta-llama/Llama-3.1-8B-Instruct}
prefill: &pool
  resources: {gpus: 0.4}
  engine: {page_size: 16, max_total_tokens: 131072, mem_fraction_static: 0.85}
decode: *pool
""",
    "cpu": """
version: 1
device: cpu
model: {path: meta-llama/Llama-3.1-8B-Instruct}
prefill: {engine: {page_size: 16}}
decode: {engine: {page_size: 16}}
""",
}
CLUSTER = """
nodes:
- {count: %d, name: h, cpus: 128, memory_gib: 2000, shm_gib: 64, memlock: unlimited, gpus: 8, gpu_kind: h200,
   nics: [{count: 8, kind: ib, gbit: 400}], sglang: 0.5.20, nixl: 1.5.1, model: true}
"""
FILES = ModelFiles("/models/m", sizes="a", config="a", tokenizer="a", model_type="kimi_k9")


@dataclass(frozen=True)
class Mistake:
    name: str
    rule: str
    base: str
    path: str
    cause: str
    remedy: str
    thread: str = ""
    sets: tuple[str, ...] = ()
    nodes: dict[str, Any] = dataclasses.field(default_factory=dict)
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    lanes: tuple[tuple[str, str, str, float], ...] = ()

    def plan(self) -> Plan:
        """Refused already when the file's own text tells it: ConfigError."""
        deployment = parse_config(BASES[self.base], self.sets)
        return resolve(deployment, device_of(deployment, cluster_gpus=8))

    def model(self) -> ModelFacts:
        return model_of(self.base, **self.facts)

    def cluster(self) -> tuple[NodeFacts, ...]:
        changes = dict(self.nodes)
        nodes = described(shape(changes.pop("count", 4)))
        everywhere = changes.pop("all", {})
        nodes = tuple(_changed(node, everywhere) for node in nodes)
        return tuple(_changed(node, changes.get(str(index), {})) for index, node in enumerate(nodes))

    def measured(self) -> tuple[MeasuredLane, ...]:
        return tuple(MeasuredLane(*lane) for lane in self.lanes)


def planted() -> list[Mistake]:
    entries = yaml.safe_load((Path(__file__).parent / "planted.yaml").read_text())
    return [_mistake(entry) for entry in entries]


def model_of(base: str, **changes: Any) -> ModelFacts:
    facts = find_facts(yaml.safe_load(BASES[base])["model"]["path"])
    assert facts is not None
    return dataclasses.replace(facts, **changes)


def shape(nodes: int = 4) -> ClusterShape:
    return parse_shape(CLUSTER % nodes)


def _mistake(entry: dict[str, Any]) -> Mistake:
    nodes = {str(index): change for index, change in entry.pop("nodes", {}).items()}
    return Mistake(nodes=nodes, sets=tuple(entry.pop("sets", ())), lanes=tuple(entry.pop("lanes", ())), **entry)


def _changed(node: NodeFacts, values: dict[str, Any]) -> NodeFacts:
    values = dict(values)
    if "gpu" in values:
        values["gpu"] = GPU_KINDS[values["gpu"]]
    if values.get("nics") == "ethernet":
        values["nics"] = (Nic("ethernet", 100.0),)
    if "files" in values:
        files = {name: tuple(value) if isinstance(value, list) else value for name, value in values["files"].items()}
        values["files"] = FILES._replace(**files)
    if "adapters" in values:
        values["adapters"] = {name: AdapterFiles(**files) for name, files in values["adapters"].items()}
    of_shape = {name: values.pop(name) for name in list(values) if name in node.shape.__slots__}
    return dataclasses.replace(node, shape=dataclasses.replace(node.shape, **of_shape), **values)
