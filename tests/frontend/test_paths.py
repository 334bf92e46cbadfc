"""A path typed in another way is found, or its 404 names the one that was meant."""

from __future__ import annotations

import pytest
from scripted import ScriptedBackend, ask, exchange, http_request, says, serving

from disagg.tokenizer.codec import Codec

CHAT, TEXT, MODELS = "/v1/chat/completions", "/v1/completions", "/v1/models"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/models/", 200),
        ("GET", "//v1/models", 200),
        ("GET", "/v1//models//", 200),
        ("GET", "/v1/models/scripted/", 200),
        ("GET", "//v1/models//scripted", 200),
        ("GET", "/health/", 200),
        ("GET", "//disagg//status/", 200),
        ("GET", "/disagg/logs/prefill-0/", 200),
        ("POST", "/disagg/engines/prefill-0/drain/", 200),
        ("POST", "//v1/chat/completions/", 200),
        ("POST", "/v1//completions", 200),
        ("GET", "/v1/models/other/", 404),
        ("DELETE", "/v1/requests/", 404),
    ],
)
async def test_slashes_too_many_change_nothing(codec: Codec, method: str, path: str, status: int) -> None:
    async with serving(ScriptedBackend(says("Hi")), codec) as frontend:
        body = ask(CHAT if "chat" in path else TEXT).partition(b"\r\n\r\n")[2] if "completions" in path else b""
        answer = await exchange(frontend.port, http_request(method, path, body))
    assert answer.status == status, answer.body


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/chat/completions", f"did you mean {CHAT}? A base URL ends with /v1"),
        ("/completions", f"did you mean {TEXT}? A base URL ends with /v1"),
        ("/models", f"did you mean {MODELS}? A base URL ends with /v1"),
        ("/models/", f"did you mean {MODELS}? A base URL ends with /v1"),
        ("/openai/v1/chat/completions", f"did you mean {CHAT}?"),
        ("/api/v1/chat/completions/", f"did you mean {CHAT}?"),
        ("/v1/v1/chat/completions", "a base URL ends with one /v1"),
        ("//v1/v1/models", f"did you mean {MODELS}"),
        ("/V1/Chat/Completions", f"did you mean {CHAT}?"),
        ("/v1/chat/completion", f"did you mean {CHAT}?"),
        ("/v1/chat/completions/extra", f"did you mean {CHAT}?"),
        ("/v1/responses", f"this serves {CHAT}, {TEXT}, {MODELS}"),
        ("/v1/images", f"this serves {CHAT}, {TEXT}, {MODELS}"),
        ("/", f"this serves {CHAT}, {TEXT}, {MODELS}"),
        ("/" + "x" * 5000, f"this serves {CHAT}"),
    ],
)
async def test_a_path_nobody_serves_gets_a_hint(codec: Codec, path: str, said: str) -> None:
    async with serving(ScriptedBackend(says("Hi")), codec) as frontend:
        answer = await exchange(frontend.port, http_request("GET", path))
    assert (answer.status, answer.json["error"]["code"]) == (404, "unknown_url")
    assert said in answer.json["error"]["message"]
    assert len(answer.body) < 500


@pytest.mark.parametrize(
    "lines", ["0" * 9 + "1" * 21, "9" * 30, "9" * 5000, "0", "-1", "1e3", "²", "%D9%A1%00", "10001", "%F0%9F"]
)
async def test_a_count_that_is_none_is_a_400(codec: Codec, lines: str) -> None:
    async with serving(ScriptedBackend(says("Hi")), codec) as frontend:
        quoted = lines.encode().decode("latin-1").replace("Â²", "%C2%B2")
        answer = await exchange(frontend.port, http_request("GET", f"/disagg/logs/prefill-0?lines={quoted}"))
    assert (answer.status, answer.json["error"]["param"]) == (400, "lines")
