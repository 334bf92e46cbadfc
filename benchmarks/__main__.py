"""`make bench`: everything that needs no GPU."""

from __future__ import annotations

from benchmarks import added_ttft

added_ttft.main()
