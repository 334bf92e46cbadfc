"""What a request's headers and body ask of admission and routing, beside what they ask of the model.

Way:   Exchange, CompletionRequest -> [wishes_of] -> Request.wishes -> admission, routing
In:    our own headers, and those that coding agents and other routers use for the same
Fails: BadRequest, naming the header
"""

from __future__ import annotations

from disagg.coordinator.wishes import PRIORITY_MAX, Wishes
from disagg.fields import refuse
from disagg.frontend.exchange import Exchange
from disagg.frontend.request_body import CompletionRequest

# Requests with the same value go on with one another; the first one that is there counts.
SESSIONS = (
    "x-disagg-session-id",
    "x-dynamo-session-id",
    "x-claude-code-session-id",
    "x-codex-session-id",
    "session-id",
    "session_id",
    "x-session-id",
)
TTFT_MS = "x-slo-ttft-ms", "x-sgl-ttft-slo-ms"  # llm-d's, which others took over; SGLang's router's
TPOT_MS = "x-slo-tpot-ms"
TOKENS_PER_S = "x-sgl-tps-slo"
PRIORITY = "x-disagg-priority"
OUTPUT_TOKENS = "x-disagg-output-tokens"
NAMES = {name.encode(): name for name in (*SESSIONS, *TTFT_MS, TPOT_MS, TOKENS_PER_S, PRIORITY, OUTPUT_TOKENS)}
SESSION_CHARACTERS_MAX = 256
DAY_MS = 86_400_000.0


def wishes_of(exchange: Exchange, asked: CompletionRequest) -> Wishes:
    ours = ((NAMES[name], value) for name, value in exchange.request_headers if name in NAMES)
    headers = {name: value.decode("latin-1").strip() for name, value in ours}
    session = next((headers[name] for name in SESSIONS if headers.get(name)), asked.session)
    ttft_ms = next((_number(headers, name, DAY_MS) for name in TTFT_MS if name in headers), 0.0)
    tpot_ms = _number(headers, TPOT_MS, DAY_MS)
    if not tpot_ms and (tokens_per_s := _number(headers, TOKENS_PER_S, 1e6)):
        tpot_ms = min(1e3 / tokens_per_s, DAY_MS)
    priority = asked.priority
    if PRIORITY in headers:
        priority = int(_number(headers, PRIORITY, PRIORITY_MAX, least=-PRIORITY_MAX, whole=True))
    return Wishes(
        session=session[:SESSION_CHARACTERS_MAX],
        priority=priority,
        ttft_s=ttft_ms / 1e3,
        tpot_s=tpot_ms / 1e3,
        output_tokens=int(_number(headers, OUTPUT_TOKENS, 2**31 - 1, whole=True)),
    )


def _number(headers: dict[str, str], name: str, most: float, *, least: float = 0.0, whole: bool = False) -> float:
    """0 where the header is absent."""
    text = headers.get(name)
    if text is None:
        return 0.0
    try:
        value = int(text) if whole else float(text)  # an int stays one: a long one is no float
    except ValueError:
        value = float("nan")
    if not least <= value <= most:
        kind = "a whole number" if whole else "a number"
        refuse(name, "invalid_header", f"header '{name}' must be {kind} from {least:g} to {most:g}")
    return value
