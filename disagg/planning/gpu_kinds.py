"""What GPUs have: memory, NVLink, speed, compute capability. Figures for planning, not measurements of any machine.

Way:   a cluster's description -> [gpu kinds] -> memory estimate, lanes, what routing believes at first
Owns:  the table. Memory as nvidia-smi reports the total; NVLink in one direction, memory's bandwidth and dense bf16
       from NVIDIA's data sheets; compute capabilities from NVIDIA's CUDA GPU list, for described GPUs (of those that
       are there a probe asks the driver)
"""

from __future__ import annotations

from typing import NamedTuple

MIB = 1 << 20


class GpuKind(NamedTuple):
    name: str
    memory_mib: int
    nvlink_gbyte_s: float  # of one GPU, in one direction; 0: it has none
    tflops: float = 0.0  # bf16, dense; 0: not known, as the next
    memory_gbyte_s: float = 0.0

    @property
    def memory_bytes(self) -> int:
        return self.memory_mib * MIB


_TABLE = (
    (GpuKind("a100-40g", 40_960, 300, 312, 1555), 8.0),
    (GpuKind("a100-80g", 81_920, 300, 312, 2039), 8.0),
    (GpuKind("l4", 23_034, 0, 121, 300), 8.9),
    (GpuKind("l40s", 46_068, 0, 362, 864), 8.9),
    (GpuKind("h20", 97_871, 450, 148, 4000), 9.0),
    (GpuKind("h100-80g", 81_559, 450, 989, 3350), 9.0),
    (GpuKind("h100-pcie", 81_559, 0, 756, 2000), 9.0),
    (GpuKind("h200", 143_771, 450, 989, 4800), 9.0),
    (GpuKind("b200", 183_359, 900, 2250, 8000), 10.0),
    (GpuKind("b300", 275_040, 900, 2250, 8000), 10.3),
    (GpuKind("gb200", 189_471, 900, 2500, 8000), 10.0),
    (GpuKind("gb300", 284_208, 900, 2500, 8000), 10.3),
)
GPU_KINDS = {kind.name: kind for kind, _ in _TABLE}
CAPABILITIES = {kind: capability for kind, capability in _TABLE}
