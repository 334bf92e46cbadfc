"""POST /tokenize and /detokenize: the frontend's tokenizer for clients, in the fields of SGLang and of vLLM.

Way:   reading.py -> [read_tokenize, read_detokenize] -> the answer's bytes -> HTTP. No engine is asked
In:    a text, texts, or a chat; ids, or lists of them. A body of a chat or a completion may be sent as it is
Out:   the ids that a generation with the same body would begin with
Fails: BadRequest, naming the parameter; for more than TOKENS_MAX tokens, too
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from disagg.adapters import Served
from disagg.fields import Body, boolean, refuse, required, token_ids, typed, wrong_type
from disagg.frontend.parameters import DETOKENIZE, TOKENIZE, check_names
from disagg.frontend.prompts import chat_ids_of, kept_of
from disagg.frontend.request_body import check_model, max_tokens_of
from disagg.frontend.responses import encode
from disagg.frontend.tool_choice import tool_use_of

if TYPE_CHECKING:
    from disagg.tokenizer.codec import Codec

BATCH_MAX = 1024  # texts, or lists of ids, of one body
TOKENS_MAX = 1 << 17  # of one body, or the model's context where that is more: an answer has a hundred bytes for each


class Answered(msgspec.Struct, frozen=True, tag=True):
    """An answer that is ready: JSON."""

    body: bytes
    ignored: list[str] = []  # fields of the body that nobody here knows


def read_tokenize(body: Body, served: Served, codec: Codec) -> Answered:
    body = check_names(body, TOKENIZE)
    _check_model(body, served)
    if ("prompt" in body) == ("messages" in body):
        refuse("prompt", "invalid_value", "say 'prompt' or 'messages', and one of them alone")
    with_strings = boolean(body, "return_token_strs")
    is_batch = False
    if "messages" in body:
        given = [chat_ids_of(body, codec, codec.context_length, tool_use_of(body).shown)]
    else:
        is_batch, texts = _texts(body["prompt"])
        special_tokens = boolean(body, "add_special_tokens", absent=True)
        given = [codec.text_ids(text, special_tokens=special_tokens) for text in texts]
    _check_tokens(sum(map(len, given)), codec)
    if (kept := kept_of(body, codec.context_length, max_tokens_of(body, least=0)[0] or 1)) is not None:
        given = [ids[-kept:] for ids in given]
    answer: dict[str, Any] = {
        "count": [len(ids) for ids in given] if is_batch else len(given[0]),
        "max_model_len": codec.context_length,
        "tokens": given if is_batch else given[0],
    }
    if with_strings:
        strings = [codec.token_strings(ids) for ids in given]
        answer["token_strs"] = strings if is_batch else strings[0]
    return Answered(encode(answer))


def read_detokenize(body: Body, served: Served, codec: Codec) -> Answered:
    body = check_names(body, DETOKENIZE)
    _check_model(body, served)
    tokens = typed(list, required(body, "tokens"), "tokens")
    skip = boolean(body, "skip_special_tokens", absent=True)
    if is_batch := bool(tokens) and isinstance(tokens[0], list):
        _check_batch(tokens, "tokens")
        given = [(typed(list, ids, f"tokens[{index}]"), f"tokens[{index}]") for index, ids in enumerate(tokens)]
    else:
        given = [(tokens, "tokens")]
    _check_tokens(sum(len(ids) for ids, _ in given), codec)
    texts = [codec.text_of(token_ids(ids, here, codec.vocabulary), skip_special_tokens=skip) for ids, here in given]
    said = texts if is_batch else texts[0]
    return Answered(encode({"text": said, "prompt": said}))  # SGLang's word for it, and vLLM's


def _check_model(body: Body, served: Served) -> None:
    """Neither asks for the model's name."""
    if "model" in body:
        check_model(body, served)


def _texts(prompt: Any) -> tuple[bool, list[str]]:
    """(whether it is a list, its texts)"""
    if isinstance(prompt, str):
        return False, [prompt]
    if not isinstance(prompt, list):
        wrong_type("prompt", "a string or a list of strings", prompt)
    _check_batch(prompt, "prompt")
    return True, [typed(str, each, f"prompt[{index}]") for index, each in enumerate(prompt)]


def _check_batch(entries: list[Any], name: str) -> None:
    if len(entries) > BATCH_MAX:
        what = f"'{name}' has {len(entries)} entries; at most {BATCH_MAX} are answered at once"
        refuse(name, "array_above_max_length", what)


def _check_tokens(count: int, codec: Codec) -> None:
    most = max(TOKENS_MAX, codec.context_length)
    if count > most:
        refuse(None, "too_many_tokens", f"the body has {count} tokens; at most {most} are answered at once")
