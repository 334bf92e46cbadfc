"""SGLang's /generate body as a body of /v1/completions.

Way:   body -> [completion_body] -> the fields that every completion has
In:    text or input_ids, sampling_params in SGLang's words, logprobs in SGLang's words
Fails: BadRequest, naming the parameter as SGLang has it; a completion's own names are unknown here
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from disagg.errors import BadRequest
from disagg.fields import Body, boolean, integer, refuse, token_ids, typed, wrong_type
from disagg.frontend.cache_salt import NAMES as SALTS
from disagg.frontend.parameters import COMPLETION
from disagg.frontend.renaming import renamed
from disagg.sampling import INT32_MAX

MAX_NEW_TOKENS = 128  # SGLang's, where the client says nothing
SAME = frozenset(
    {"temperature", "top_p", "top_k", "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty", "stop"}
)
SAME |= {"stop_token_ids", "stop_regex", "ignore_eos", "skip_special_tokens", "spaces_between_special_tokens"}
SAME |= {"no_stop_trim", "logit_bias", "n", "json_schema", "regex", "ebnf", "structural_tag"}
RENAMED = {"max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens", "sampling_seed": "seed"}
# What a completion's refusals call otherwise (disagg/frontend/renaming.py).
NAMES = {"prompt": "text", **{ours: f"sampling_params.{theirs}" for theirs, ours in RENAMED.items()}}
NAMES |= {"logprobs": "top_logprobs_num", **{name: f"sampling_params.{name}" for name in SAME}}
BESIDE = frozenset({"return_logprob", "logprob_start_len", "top_logprobs_num", "return_text_in_logprobs"})
BESIDE |= {"token_ids_logprob"}
CHOSEN_IDS_MAX = 128
_COMPLETIONS_ALONE = COMPLETION - {"model", "lora_path", "stream", *SALTS}
UNREAD = frozenset({"log_metrics", "labels", "conversation_id", "custom_labels", "return_bytes"})


def completion_body(body: Body) -> Body:
    """Of its fields those that are not named here stay as they are: the table of parameters knows them."""
    rest = {name: value for name, value in body.items() if name not in BESIDE | UNREAD and value is not None}
    for name in rest:
        if name in _COMPLETIONS_ALONE:
            refuse(name, "unknown_parameter", f"'{name}' is not a parameter of this endpoint")
    prompt = _prompt(rest.pop("text", None), rest.pop("input_ids", None))
    rest |= {"prompt": prompt, "max_tokens": MAX_NEW_TOKENS, "add_special_tokens": True}
    rest |= _sampling(rest.pop("sampling_params", {}))
    top = integer(body, "top_logprobs_num", 0, INT32_MAX) or 0
    if boolean(body, "return_logprob"):
        rest["logprobs"] = top
    return rest


def own_words(error: BadRequest, body: Body) -> BadRequest:
    """A refusal of a completion's field, named as SGLang names it, or as this body has it."""
    return renamed(error, NAMES if body.get("input_ids") is None else NAMES | {"prompt": "input_ids"})


def is_list(completion: Body) -> bool:
    """Whether SGLang answers with a list: several answers were asked for, or a list of prompts."""
    prompt = completion["prompt"]
    is_batch = isinstance(prompt, list) and bool(prompt) and isinstance(prompt[0], str | list)
    return is_batch or completion.get("n", 1) != 1


def prompt_logprobs_from(body: Body) -> int | None:
    """The first token of the prompt whose logprob is asked for; None: of none."""
    start = integer(body, "logprob_start_len", -1, INT32_MAX)
    return None if start is None or start < 0 or not boolean(body, "return_logprob") else start


def chosen_ids(body: Body, vocabulary: int) -> list[int]:
    """Ids whose logprobs are told in the place of each token; one outside the vocabulary would end a scheduler."""
    name = "token_ids_logprob"
    given = typed(list, [] if body.get(name) is None else body[name], name)
    if len(given) > CHOSEN_IDS_MAX:
        what = f"'{name}' has {len(given)} entries; at most {CHOSEN_IDS_MAX} are allowed"
        refuse(name, "array_above_max_length", what)
    checked = token_ids(given, name, vocabulary)
    return checked if boolean(body, "return_logprob") else []


def _prompt(text: Any, ids: Any) -> Any:
    if (text is None) == (ids is None):
        what = "neither is here" if text is None else "both are here"
        refuse("text", "invalid_value", f"a request has either 'text' or 'input_ids'; {what}")
    if text is None:
        if any(isinstance(each, str) for each in typed(list, ids, "input_ids")):
            wrong_type("input_ids", "token ids, or lists of them", ids)
        return ids
    texts = text if isinstance(text, list) else [text]
    if not all(isinstance(each, str) for each in texts):  # a prompt may be ids: here they have a name of their own
        wrong_type("text", "a string or a list of strings", text if texts is not text else text[0])
    return text


def _sampling(given: Any) -> dict[str, Any]:
    if isinstance(given, list):
        if any(each != given[0] for each in given[1:]):
            refuse(
                "sampling_params", "unsupported_parameter", "'sampling_params' must be the same for all prompts here"
            )
        given = given[0] if given else {}
    if not isinstance(given, Mapping):
        wrong_type("sampling_params", "an object", given)
    sampling: Body = {}
    for name, value in given.items():
        if name not in SAME and name not in RENAMED:
            here = f"sampling_params.{name[:100]}"
            refuse(here, "unknown_parameter", f"'{here}' is not a sampling parameter here")
        if value is not None:
            here = RENAMED.get(name) or name
            sampling[here] = value
    return sampling
