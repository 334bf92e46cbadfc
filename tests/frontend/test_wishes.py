"""Sessions, priorities and limits of latency are understood in our words and in those of other routers and agents."""

from __future__ import annotations

from typing import Any

import pytest
from scripted import ScriptedBackend, ask, exchange, http_request, says, serving

from disagg.coordinator.wishes import Wishes
from disagg.tokenizer.codec import Codec

MEANT = [
    ([], {}, Wishes()),
    (["x-disagg-session-id: s1", "x-session-id: s2"], {}, Wishes(session="s1")),
    (["x-claude-code-session-id: cc"], {"prompt_cache_key": "k"}, Wishes(session="cc")),
    ([], {"prompt_cache_key": "k"}, Wishes(session="k")),
    (["x-dynamo-session-id: d"], {}, Wishes(session="d")),
    (["session_id: codex"], {}, Wishes(session="codex")),
    (["x-slo-ttft-ms: 500", "x-slo-tpot-ms: 20.5"], {}, Wishes(ttft_s=0.5, tpot_s=0.0205)),
    (["x-sgl-ttft-slo-ms: 250", "x-sgl-tps-slo: 50"], {}, Wishes(ttft_s=0.25, tpot_s=0.02)),
    ([], {"priority": -3}, Wishes(priority=-3)),
    (["x-disagg-priority: 7"], {"priority": -3}, Wishes(priority=7)),
    (["x-disagg-output-tokens: 40"], {}, Wishes(output_tokens=40)),
    (["x-sgl-tps-slo: 5e-324"], {}, Wishes(tpot_s=86_400.0)),
]


def request(headers: list[str], body: dict[str, Any]) -> bytes:
    return http_request("POST", "/v1/chat/completions", ask(**body).partition(b"\r\n\r\n")[2], headers)


@pytest.mark.parametrize(("headers", "body", "wishes"), MEANT)
async def test_what_a_request_wishes(codec: Codec, headers: list[str], body: dict[str, Any], wishes: Wishes) -> None:
    backend = ScriptedBackend(says("Hi"))
    async with serving(backend, codec) as frontend:
        answer = await exchange(frontend.port, request(headers, body))
    assert answer.status == 200
    [seen] = backend.requests
    assert seen.wishes == wishes


@pytest.mark.parametrize(
    ("header", "named"),
    [
        ("x-slo-ttft-ms: soon", "x-slo-ttft-ms"),
        ("x-slo-ttft-ms: nan", "x-slo-ttft-ms"),
        ("x-slo-tpot-ms: -1", "x-slo-tpot-ms"),
        ("x-disagg-priority: 101", "x-disagg-priority"),
        ("x-disagg-priority: 1.5", "x-disagg-priority"),
        ("x-disagg-output-tokens: many", "x-disagg-output-tokens"),
        (f"x-disagg-output-tokens: {'9' * 400}", "x-disagg-output-tokens"),
        (f"x-disagg-output-tokens: {'9' * 5000}", "x-disagg-output-tokens"),
        (f"x-disagg-priority: -1{'0' * 309}", "x-disagg-priority"),
        ("x-disagg-priority: inf", "x-disagg-priority"),
        ("x-slo-ttft-ms: inf", "x-slo-ttft-ms"),
        ("x-slo-tpot-ms: 1e999", "x-slo-tpot-ms"),
        ("x-sgl-tps-slo: -inf", "x-sgl-tps-slo"),
    ],
)
async def test_a_wish_that_makes_no_sense_is_refused_by_name(codec: Codec, header: str, named: str) -> None:
    backend = ScriptedBackend(says("Hi"))
    async with serving(backend, codec) as frontend:
        answer = await exchange(frontend.port, request([header], {}))
    assert answer.status == 400
    assert answer.json["error"]["param"] == named
    assert not backend.requests
