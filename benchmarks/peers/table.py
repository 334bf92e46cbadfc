"""The results as one table, each number beside its ratio to ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.peers.deployments import FLOOR, KNOWN, OURS

METRICS = {
    "token_us_64": "CPU µs a token, 64 streams at 10 ms",
    "token_us_512": "CPU µs a token, 512 streams at 50 ms",
    "request_us_500": "CPU µs a request of 500 tokens",
    "request_us_8000": "CPU µs a request of 8,000 tokens",
    "tok_s_64": "tok/s, 64 clients",
    "tok_s_512": "tok/s, 512 clients",
    "req_s_64": "requests/s of one token, 64 clients",
    "req_s_512": "requests/s of one token, 512 clients",
    "ttft_1_p50": "TTFT ms, 1 client, p50",
    "ttft_1_p99": "TTFT ms, 1 client, p99",
    "ttft_64_p50": "TTFT ms, 64 clients, p50",
    "ttft_64_p99": "TTFT ms, 64 clients, p99",
    "pss_idle_mb": "memory (PSS) MB, idle",
    "pss_after_mb": "memory (PSS) MB, after load",
    "ready_s": "s until its first answer",
}
PACES = {"token_us_64": "pace_64", "token_us_512": "pace_512"}
PACE_REACHED = 0.9
FOOT = """\
CPU is the frontend's alone, of all its threads; a token's while every stream runs, so without what a request costs.
~NN%: only that share of the workers' pace was reached. All else shares the cores with driver and workers. tok/s are of
128-token answers. TTFT at 64 clients is of 1-token answers in a closed loop. It counts the workers too: at one client
Dynamo's is mostly its mocker's. Medians of rounds; TTFT over all requests."""


def table(
    names: Sequence[str], summaries: Mapping[str, Mapping[str, float]], notes: Mapping[str, Sequence[str]]
) -> str:
    ours = summaries.get(OURS, {})
    rows = [["", *(KNOWN[name].title for name in names)]]
    for metric, title in METRICS.items():
        rows.append(
            [title, *(cell(metric, summaries[name], None if name in (OURS, FLOOR) else ours) for name in names)]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(names) + 1)]
    lines = [
        row[0].ljust(widths[0])
        + "".join("  " + text.rjust(width) for text, width in zip(row[1:], widths[1:], strict=True))
        for row in rows
    ]
    lines += ["", FOOT, ""]
    for name in names:
        lines.append(f"{KNOWN[name].title}: {'; '.join([KNOWN[name].does, *notes.get(name, ())])}")
    return "\n".join(lines)


def cell(metric: str, summary: Mapping[str, float], ours: Mapping[str, float] | None) -> str:
    if metric not in summary:
        return "-"
    value = summary[metric]
    text = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    pace = summary.get(PACES.get(metric, ""), 1.0)
    if pace < PACE_REACHED:
        text += f" ~{pace:.0%}"
    if ours and ours.get(metric):
        text += f" ({value / ours[metric]:.2f}x)"
    return text
