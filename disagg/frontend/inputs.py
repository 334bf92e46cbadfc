"""The bodies of /v1/embeddings, /v1/classify, /v1/rerank and /v1/score as checked token ids.

Way:   body -> reading.py -> [read_inputs] -> InputsRequest -> embeddings.py
In:    a decoded body; nothing in it is trusted
Out:   an InputsRequest: each of its prompts becomes a request of its own
Fails: BadRequest, naming the parameter; a text is never cut to fit
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import msgspec

from disagg.adapters import Served
from disagg.fields import Body, boolean, integer, refuse, required, token_ids, typed, wrong_type
from disagg.frontend.parameters import check_names
from disagg.frontend.request_body import check_model
from disagg.token_ids import TokenIds, packed

if TYPE_CHECKING:
    from disagg.tokenizer.codec import Codec

InputKind = Literal["embd", "clas", "rank", "scor"]

BATCH_MAX = 2048  # inputs of one body, and tokens of all of them: as OpenAI has them
TOKENS_MAX = 300_000
LABELS_MAX = 1024
DIMENSIONS_MAX = 1 << 20

NAMING = frozenset({"model", "lora_path"})
FIELDS: dict[InputKind, frozenset[str]] = {
    "embd": NAMING | {"input", "encoding_format", "dimensions"},
    "clas": NAMING | {"input"},
    "rank": NAMING | {"query", "documents", "top_n", "return_documents"},
    "scor": NAMING | {"query", "items", "apply_softmax", "item_first", "label_token_ids"},
}


class InputsRequest(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    source: str  # the parameter that held the inputs
    prompts: list[TokenIds]
    seconds_at: list[int] = []  # of pairs: where each one's second text begins
    is_base64: bool = False
    dimensions: int | None = None
    documents: list[str] | None = None  # to be sent back
    top_n: int | None = None
    softmax: bool = False
    label_ids: list[int] = []  # of a model that makes tokens: the ids whose chances, after each prompt, are its score
    ignored: list[str] = []  # fields of the body that nobody here knows
    model: str = ""  # as it was asked for; the answer says the same
    adapter: str = ""  # what that means; empty: the model as it is


def read_inputs(kind: InputKind, body: Body, served: Served, codec: Codec) -> InputsRequest:
    body = check_names(body, FIELDS[kind])
    if kind != "embd":  # the others are not OpenAI's, and their clients leave it out
        body = {"model": served.model, **body}
    adapter = check_model(body, served)
    asked = msgspec.structs.replace(_READ[kind](body, codec), model=body["model"], adapter=adapter)
    _check_lengths(asked, codec.context_length)
    return asked


def _embeddings(body: Body, codec: Codec) -> InputsRequest:
    encoding = body.get("encoding_format", "float")
    if encoding not in ("float", "base64"):
        refuse("encoding_format", "invalid_value", "'encoding_format' must be 'float' or 'base64'")
    return InputsRequest(
        source="input",
        prompts=_inputs(body, codec),
        is_base64=encoding == "base64",
        dimensions=integer(body, "dimensions", 1, DIMENSIONS_MAX),
    )


def _classify(body: Body, codec: Codec) -> InputsRequest:
    return InputsRequest(source="input", prompts=_inputs(body, codec))


def _rerank(body: Body, codec: Codec) -> InputsRequest:
    query = _text(required(body, "query"), "query")
    documents = [_text(each, f"documents[{at}]") for at, each in enumerate(_list(body, "documents"))]
    pairs, left = [], TOKENS_MAX
    for document in documents:
        pairs.append(codec.pair_ids(query, document))
        left -= len(pairs[-1][0])
        if left < 0:
            break  # what is here is refused for its length
    return InputsRequest(
        source="documents",
        prompts=[packed(ids) for ids, _ in pairs],
        seconds_at=[second_at for _, second_at in pairs],
        documents=documents if boolean(body, "return_documents", absent=True) else None,
        top_n=integer(body, "top_n", 1, BATCH_MAX),
    )


def _score(body: Body, codec: Codec) -> InputsRequest:
    query, item_first = required(body, "query"), boolean(body, "item_first")
    given = required(body, "items")
    items = [given] if isinstance(given, str) else _list(body, "items")
    prompts: list[TokenIds] = []
    query_ids = [] if isinstance(query, str) else _ids(query, "query", codec)
    left = TOKENS_MAX
    for at, item in enumerate(items):
        if left < 0:
            break  # what is here is refused for its length
        here = f"items[{at}]"
        if isinstance(query, str):
            texts = [query, _text(item, here)]
            prompts.append(packed(codec.text_ids("".join(reversed(texts) if item_first else texts))))
        else:
            ids = [query_ids, _ids(item, here, codec)]
            prompts.append(packed(ids[1] + ids[0] if item_first else ids[0] + ids[1]))
        left -= len(prompts[-1])
    labels = _labels(body, codec)
    return InputsRequest(source="items", prompts=prompts, softmax=boolean(body, "apply_softmax"), label_ids=labels)


def _labels(body: Body, codec: Codec) -> list[int]:
    name = "label_token_ids"
    if name not in body:
        return []
    if not (given := typed(list, body[name], name)):
        refuse(name, "empty_array", f"'{name}' is empty")
    if len(given) > LABELS_MAX:
        refuse(name, "array_above_max_length", f"'{name}' has {len(given)} entries; at most {LABELS_MAX} are allowed")
    return token_ids(given, name, codec.vocabulary)


_READ = {"embd": _embeddings, "clas": _classify, "rank": _rerank, "scor": _score}


def _inputs(body: Body, codec: Codec) -> list[TokenIds]:
    """A text, a list of texts, a list of token ids, or a list of such lists."""
    given = required(body, "input")
    if isinstance(given, str):
        return [packed(codec.text_ids(_text(given, "input")))]
    if not isinstance(given, list):
        wrong_type("input", "a string, a list of strings, or lists of token ids", given)
    if given and all(type(each) in (int, float) for each in given):
        return [packed(_ids(given, "input", codec))]
    prompts = []
    for at, each in enumerate(_list(body, "input")):
        here = f"input[{at}]"
        ids = _ids(each, here, codec) if isinstance(each, list) else codec.text_ids(_text(each, here))
        prompts.append(packed(ids))
    return prompts


def _list(body: Body, name: str) -> list[Any]:
    value = required(body, name)
    if not isinstance(value, list):
        wrong_type(name, "a list", value)
    if not value:
        refuse(name, "empty_array", f"'{name}' is empty")
    if len(value) > BATCH_MAX:
        what = f"'{name}' has {len(value)} entries; at most {BATCH_MAX} are allowed in one request"
        refuse(name, "array_above_max_length", what)
    return value


def _text(value: Any, here: str) -> str:
    if not isinstance(value, str):
        wrong_type(here, "a string", value)
    if not value.strip():
        refuse(here, "empty_prompt", f"'{here}' is empty")
    return value


def _ids(value: Any, here: str, codec: Codec) -> list[int]:
    if not isinstance(value, list):
        wrong_type(here, "a list of token ids", value)
    if not value:
        refuse(here, "empty_array", f"'{here}' is empty")
    if len(value) >= codec.context_length:  # before each id is looked at
        _refuse_too_long(here, len(value), codec.context_length)
    return token_ids(value, here, codec.vocabulary)


def _check_lengths(asked: InputsRequest, context_length: int) -> None:
    check_held(asked, context_length, "the model's context")
    total = sum(map(len, asked.prompts))
    if total > TOKENS_MAX:
        what = f"'{asked.source}' has {total} tokens in all; at most {TOKENS_MAX} are allowed in one request"
        refuse(asked.source, "too_many_tokens", what)


def check_held(asked: InputsRequest, limit: int, whose: str) -> None:
    """Raises BadRequest for an input without a token, or with `limit` or more: SGLang wants one to be left."""
    for at, ids in enumerate(asked.prompts):
        here = f"{asked.source}[{at}]" if len(asked.prompts) > 1 else asked.source
        if not ids:
            refuse(here, "empty_prompt", f"'{here}' gives no token")
        if len(ids) >= limit:
            _refuse_too_long(here, len(ids), limit, whose)


def _refuse_too_long(here: str, tokens: int, limit: int, whose: str = "the model's context") -> None:
    what = f"'{here}' has {tokens} tokens; {whose} is {limit}, and it must stay below that. Nothing is cut here"
    refuse(here, "context_length_exceeded", what)
