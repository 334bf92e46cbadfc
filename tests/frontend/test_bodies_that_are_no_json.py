"""A body that is no JSON is told what it is; one that is JSON, whatever its headers say, is read."""

from __future__ import annotations

import gzip
import json
import zlib

import pytest
from scripted import MODEL, ScriptedBackend, exchange, http_request, says, serving

from disagg.tokenizer.codec import Codec

CHAT = "/v1/chat/completions"
GOOD = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}).encode()


def with_content(escaped: str) -> bytes:
    return GOOD.replace(b"Hi", escaped.encode("utf-8", "surrogatepass"))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "it is empty"),
        (b" \r\n", "it is empty"),
        (gzip.compress(GOOD, mtime=0), "it looks compressed"),
        (zlib.compress(GOOD), "it looks compressed"),
        (GOOD.decode().encode("utf-16"), "UTF-16"),
        (GOOD.decode().encode("utf-16-le"), "UTF-16"),
        (GOOD.decode().encode("utf-16-be"), "UTF-16"),
        (GOOD.decode().encode("utf-32"), "UTF-16 or UTF-32"),
        (b'--xyz\r\ncontent-disposition: form-data; name="model"\r\n\r\nm\r\n--xyz--', "multipart"),
        (b"model=m&messages=Hi", "form data"),
        (b"messages%5B0%5D=Hi", "form data"),
        (GOOD.replace(b'"', b"'"), "single quotes"),
        (b"'" + GOOD + b"'", "single quotes"),
        (GOOD.replace(b"Hi", b"caf\xe9"), "is no UTF-8 (0xe9)"),
        (with_content("\ud83d"), "half a character"),
        (with_content(r"\ud83d"), "half a character"),
        (with_content(r"\uD83D and more"), "half a character"),
        (with_content(r"\ude00"), "half a character"),
        (with_content(r"\ud83d\ud83d\ude00"), "half a character"),
        (with_content(r"\ud83d\ude00 \udc00"), "half a character"),
        (with_content(r"\\\ud83d"), "half a character"),
        (with_content(r"\\ud83d\x"), "invalid escape"),
        (GOOD[:-1], "truncated"),
        (GOOD + b"x", "trailing characters"),
        (b"[]", "must be a JSON object"),
        (b"null", "must be a JSON object"),
        (b'{"a":' * 2000, "nested too deeply"),
    ],
)
async def test_the_error_says_what_the_body_is(codec: Codec, body: bytes, said: str) -> None:
    async with serving(ScriptedBackend(says("x")), codec) as frontend:
        answer = await exchange(frontend.port, http_request("POST", CHAT, body))
    assert answer.status == 400
    assert said in answer.json["error"]["message"]


@pytest.mark.parametrize("content", [r"\ud83d\ude00", r"\\ud83d", r"\\\\ude00", "\N{GRINNING FACE}", "é"])
async def test_whole_characters_are_taken(codec: Codec, content: str) -> None:
    async with serving(ScriptedBackend(says("x")), codec) as frontend:
        answer = await exchange(frontend.port, http_request("POST", CHAT, with_content(content)))
    assert answer.status == 200, answer.body


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "br", "deflate", "zstd", "gzip, identity", "x" * 500])
async def test_an_encoded_body_is_refused_by_its_name(codec: Codec, encoding: str) -> None:
    backend = ScriptedBackend(says("x"))
    async with serving(backend, codec) as frontend:
        request = http_request("POST", CHAT, gzip.compress(GOOD), [f"content-encoding: {encoding}"])
        answer = await exchange(frontend.port, request)
    assert (answer.status, answer.json["error"]["code"]) == (415, "unsupported_content_encoding")
    assert f"'{encoding.lower()[:100]}'" in answer.json["error"]["message"]
    assert answer.headers["accept-encoding"] == "identity"
    assert backend.requests == []


@pytest.mark.parametrize(
    "header",
    [
        "content-encoding: identity",
        "content-encoding:",
        "content-type: application/x-www-form-urlencoded",  # what curl -d says by itself
        "content-type: text/plain;charset=UTF-8",
        "content-type: nonsense",
        "x: y",
    ],
)
async def test_what_is_json_is_read_whatever_it_is_called(codec: Codec, header: str) -> None:
    async with serving(ScriptedBackend(says("x")), codec) as frontend:
        for body in (GOOD, b"\xef\xbb\xbf" + GOOD, b"\r\n\t " + GOOD + b"\n"):
            assert (await exchange(frontend.port, http_request("POST", CHAT, body, [header]))).status == 200
