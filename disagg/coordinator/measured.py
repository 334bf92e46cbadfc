"""Puts the times that engines measured into a request's timeline.

Way:   a leg's last word -> [note_end] -> Request.timeline, Request.facts
In:    times in the clock of the leg's host (monotonic seconds), and how far that clock is ahead of ours
"""

from __future__ import annotations

from disagg.coordinator.request import Request
from disagg.plane import messages as m


def note_end(request: Request, end: m.LegEnd, clock_offset_s: float, *, read_prompt: bool) -> None:
    """`read_prompt`: the leg is prefill's, or an aggregated engine's."""
    facts, stats = request.facts, dict(end.stats)
    if "kv_bytes" in stats:
        facts.kv_bytes, facts.kv_transfer_s = int(stats.pop("kv_bytes")), stats.pop("kv_transfer_s", 0.0)
    if not read_prompt:
        return
    facts.cached_tokens = end.cached_tokens
    here = {name: at_s - clock_offset_s for name, at_s in stats.items()}
    # What the engine measured takes the place of when we heard of it.
    moments = {"prefill_start": here.get("forward_start"), "prefill_end": here.get("forward_end")}
    if "transfer_end" in here:
        moments["transfer_start"] = here["transfer_end"] - (facts.kv_transfer_s or 0.0)
        moments["transfer_end"] = here["transfer_end"]
    request.timeline |= {name: at_s for name, at_s in moments.items() if at_s is not None}
