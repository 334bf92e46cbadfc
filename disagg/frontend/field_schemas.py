"""What each field of a body holds, as JSON schema: for readers of /docs and for programs that read /openapi.json.

Way:   an endpoint's field (endpoints.py) -> [schema_of] -> openapi.py
In:    ranges of sampling fields from the table that checks them (disagg/sampling.py)
Out:   a type alone where a field is an object with rules of its own: its reader says them, in a 400

tests/frontend/test_openapi.py holds it against the readers: what is not of these types is refused by name.
"""

from __future__ import annotations

from typing import Any

from disagg.coordinator.wishes import PRIORITY_MAX
from disagg.frontend.request_body import N_MAX, TOP_LOGPROBS_MAX
from disagg.frontend.template_variables import EFFORTS
from disagg.frontend.tool_choice import CHOICES
from disagg.sampling import FIELDS

Schema = dict[str, Any]

STRING: Schema = {"type": "string"}
FLAG: Schema = {"type": "boolean"}
OBJECT: Schema = {"type": "object"}
COUNT: Schema = {"type": "integer", "minimum": 0}
IDS: Schema = {"type": "array", "items": {"type": "integer"}}
STRINGS: Schema = {"type": "array", "items": STRING}
OBJECTS: Schema = {"type": "array", "items": OBJECT}
ANYTHING: Schema = {}


def _either(*schemas: Schema) -> Schema:
    return {"anyOf": list(schemas)}


def _each(names: str, schema: Schema) -> dict[str, Schema]:
    return dict.fromkeys(names.split(), schema)


_FLAGS = """add_generation_prompt add_special_tokens apply_softmax continue_final_message echo ignore_eos
    include_stop_str_in_output item_first no_stop_trim parallel_tool_calls return_documents return_logprob
    return_text_in_logprobs return_token_ids return_token_strs separate_reasoning skip_special_tokens
    spaces_between_special_tokens store stream stream_reasoning background"""
_OBJECTS = """chat_template_kwargs guided_structured_outputs logit_bias metadata output_config output_format reasoning
    response_format sampling_params stream_options structured_outputs thinking"""
_TOP: Schema = {"type": "integer", "minimum": 0, "maximum": TOP_LOGPROBS_MAX}
_LISTED: Schema = {"type": "integer", "minimum": 1}

_SCHEMAS: dict[str, Schema] = {
    **{
        field.name: {
            "type": "integer" if field.is_integer else "number",
            "exclusiveMinimum" if field.above_least else "minimum": field.least,
            "maximum": field.most,
        }
        for field in FIELDS
    },
    **_each(_FLAGS, FLAG),
    **_each(_OBJECTS, OBJECT),
    **_each("ebnf guided_grammar guided_regex model regex", STRING),
    **_each("instructions previous_response_id prompt_cache_key truncation", STRING),
    "priority": {"type": "integer", "minimum": -PRIORITY_MAX, "maximum": PRIORITY_MAX},
    **_each("guided_json json_schema", _either(OBJECT, STRING)),
    **_each("guided_choice include", STRINGS),
    **_each("stop stop_regex stop_sequences", _either(STRING, STRINGS)),
    **_each("input_ids", _either(IDS, {"type": "array", "items": IDS})),
    **_each("messages tools documents", OBJECTS),
    **_each("max_tokens max_completion_tokens max_output_tokens max_new_tokens", _LISTED),
    **_each("min_tokens min_new_tokens", COUNT),
    **_each("n best_of", {"type": "integer", "minimum": 1, "maximum": N_MAX}),
    **_each("logprob_start_len truncate_prompt_tokens", {"type": "integer", "minimum": -1}),
    **_each("top_logprobs top_logprobs_num prompt_logprobs", _TOP),
    **_each("stop_token_ids token_ids_logprob", IDS),
    **_each("dimensions top_n", _LISTED),
    "structural_tag": _either(OBJECT, STRING),
    "reasoning_effort": _either({"type": "string", "enum": list(EFFORTS)}, {"type": "number", "minimum": 0}),
    "tool_choice": _either({"type": "string", "enum": list(CHOICES)}, OBJECT),
    "logprobs": FLAG,
    "prompt": _either(STRING, STRINGS, IDS, {"type": "array", "items": IDS}),
    "input": _either(STRING, STRINGS, IDS, {"type": "array", "items": IDS}),
    "text": _either(STRING, STRINGS),
    "tokens": _either(IDS, {"type": "array", "items": IDS}),
    **_each("lora_path cache_salt extra_key", _either(STRING, STRINGS)),
    "encoding_format": {"type": "string", "enum": ["float", "base64"]},
    "query": _either(STRING, IDS),
    "items": _either(STRING, STRINGS, {"type": "array", "items": IDS}),
    "label_token_ids": IDS,
    "system": _either(STRING, OBJECTS),
}
_SCHEMAS["sampling_seed"] = _SCHEMAS["seed"]  # /generate's name for it
# Where a name means something else than elsewhere.
_OF_ENDPOINT: dict[tuple[str, str], Schema] = {
    ("text", "logprobs"): _TOP,
    ("tokenize", "logprobs"): ANYTHING,
    ("tokenize", "prompt"): _either(STRING, STRINGS),
    ("responses", "input"): _either(STRING, OBJECTS),
    ("responses", "text"): OBJECT,
    ("responses", "tool_choice"): _either(STRING, OBJECT),
    ("messages", "tool_choice"): OBJECT,
    ("count_tokens", "tool_choice"): OBJECT,
    ("rank", "query"): STRING,
    ("rank", "documents"): STRINGS,
}
# Read so that they can be refused in words of their own, or changed by nothing here.
_REFUSED_IN_WORDS = {"functions", "function_call", "container", "mcp_servers", "conversation", "user"}
_REFUSED_OF = {("responses", "prompt"), ("messages", "stop"), ("messages", "reasoning")}
_REFUSED_OF |= {("count_tokens", "stop"), ("count_tokens", "reasoning")}


def is_refused(word: str, name: str) -> bool:
    """Whether the field is known so that its refusal can say what to send instead."""
    return name in _REFUSED_IN_WORDS or (word, name) in _REFUSED_OF


def schema_of(word: str, name: str) -> Schema:
    """Of a field of the endpoint with that row in READINGS. KeyError for one that nobody has told of here."""
    return _OF_ENDPOINT.get((word, name)) or _SCHEMAS[name]
