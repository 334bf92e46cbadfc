"""What needs a GPU: each `python -m benchmarks.gpu.NAME` runs by itself, writes JSON, and needs no Ray."""
