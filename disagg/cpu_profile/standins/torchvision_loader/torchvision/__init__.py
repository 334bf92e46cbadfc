"""Loads the real torchvision although its C extension cannot be loaded beside the installed torch.

Way:   first on PYTHONPATH where disagg/cpu_profile/paths.py says so; replaces itself in sys.modules by the real package
Why:   a CUDA build of torchvision beside a CPU build of torch fails on import, because its Python code looks up two
       operators that only the extension declares. They are for boxes in images, which no engine here ever sees, so
       declaring them (without a body) is enough
"""

import importlib.machinery
import importlib.util
import os
import sys

import torch

_BOXES = "(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor"
for _operator in ("nms", "qnms"):
    torch.library.define(f"torchvision::{_operator}", _BOXES)

_own_root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_other_roots = [root for root in sys.path if os.path.abspath(root) != _own_root]
_spec = importlib.machinery.PathFinder.find_spec("torchvision", _other_roots)
if _spec is None or _spec.loader is None:
    raise ModuleNotFoundError("No module named 'torchvision'", name="torchvision")
_real = importlib.util.module_from_spec(_spec)
sys.modules["torchvision"] = _real
_spec.loader.exec_module(_real)
