"""What is measured, each against its peer in one run. `python -m benchmarks` runs all that need no GPU."""
