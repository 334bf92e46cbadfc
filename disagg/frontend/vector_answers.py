"""What engines made of inputs, as the answers of /v1/embeddings, /v1/classify, /v1/rerank and /v1/score.

Way:   packed float32 of each input -> [embedding, classes, ranks, scores] -> HTTP
Out:   OpenAI's shape for embeddings; SGLang's for the others, which OpenAI has not
Fails: never. What a model cannot do was refused before it was asked
"""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from operator import itemgetter
from typing import Any

import msgspec

from disagg.frontend.inputs import InputsRequest
from disagg.models.heads import Head
from disagg.plane.messages import pack_floats, unpack_floats


def embedding(packed: bytes, asked: InputsRequest) -> msgspec.Raw:
    """One vector as JSON. Made when it comes, so that no turn of the event loop encodes thousands of them."""
    if asked.dimensions is not None:
        packed = pack_floats(shortened(unpack_floats(packed), asked.dimensions))
    if asked.is_base64:
        return msgspec.Raw(b'"' + base64.b64encode(packed) + b'"')
    return msgspec.Raw(msgspec.json.encode(unpack_floats(packed)))


def shortened(vector: list[float], dimensions: int) -> list[float]:
    """Its first numbers, as a unit vector again."""
    cut = vector[:dimensions]
    length = math.sqrt(math.fsum(number * number for number in cut))
    return [number / length for number in cut] if length else cut


def embeddings(vectors: Sequence[msgspec.Raw], model: str, tokens: int) -> dict[str, Any]:
    data = [{"object": "embedding", "index": at, "embedding": vector} for at, vector in enumerate(vectors)]
    return {"object": "list", "data": data, "model": model, "usage": _usage(tokens)}


def classes(rows: Sequence[list[float]], head: Head, model: str, tokens: int, request_id: str, created_s: int) -> Any:
    data = []
    for at, logits in enumerate(rows):
        best = max(range(len(logits)), key=logits.__getitem__)
        label = head.classes[best] if best < len(head.classes) else f"LABEL_{best}"
        data.append({"index": at, "label": label, "probs": softmax(logits), "num_classes": len(logits)})
    head_of_answer = {"id": f"classify-{request_id}", "object": "list", "created": created_s, "model": model}
    usage = _usage(tokens) | {"completion_tokens": 0, "prompt_tokens_details": None}
    return {**head_of_answer, "data": data, "usage": usage}


def ranks(rows: Sequence[list[float]], asked: InputsRequest, ids: Sequence[str]) -> list[dict[str, Any]]:
    """Best first; among equals as they were sent."""
    found = list[dict[str, Any]]()
    for at, scores_of_one in enumerate(rows):
        document = {} if asked.documents is None else {"document": asked.documents[at]}
        meta = {"id": ids[at], "prompt_tokens": len(asked.prompts[at])}
        found.append({"score": scores_of_one[0], **document, "index": at, "meta_info": meta})
    found.sort(key=itemgetter("score"), reverse=True)
    return found[: asked.top_n]


def scores(rows: Sequence[list[float]], model: str, tokens: int) -> dict[str, Any]:
    return {"scores": rows, "model": model, "usage": _usage(tokens), "object": "scoring"}


def softmax(logits: list[float]) -> list[float]:
    most = max(logits)
    powers = [math.exp(logit - most) for logit in logits]
    total = math.fsum(powers)
    return [power / total for power in powers]


def _usage(tokens: int) -> dict[str, Any]:
    return {"prompt_tokens": tokens, "total_tokens": tokens}
