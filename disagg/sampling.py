"""The sampling fields: what an engine does with each, and the least and the largest value that it takes.

Way:   JSON body, or a model's generation_config.json -> [FIELDS] -> Request.sampling, in SGLang's words
Out:   values that stay finite numbers, and that divide nothing by zero, in the types the engine keeps them in
Fails: BadRequest that names the field and its least or largest value; StartError for a value that a model brings

Why a table: one batch holds many clients' rows, so a row that becomes inf or NaN ends the engine under all of them
("probability tensor contains inf, nan" is a RuntimeError in SGLang's sampler, and an assertion on a GPU). SGLang's own
ranges (SamplingParams.verify, the same in 0.5.16 to 0.5.23 but for the seed) leave open what overflows. What it does,
in float32, a row of logits after the other:

    logits - frequency_penalty * count - presence_penalty     as far as these tokens were put out
    logits / repetition_penalty, or * where they are negative as far as these tokens were put out
    logits / temperature, then softmax, sort, cumulative sum
    weights whose sum before them is above top_p, from rank top_k on, or below min_p * the largest, become 0

The largest logit that a model gives is 65504 (a 16-bit float's), and a context holds fewer than 2**20 tokens, so the
quotient's largest value is (65504 + 2 * 2**20) / REPETITION_LEAST / TEMPERATURE_LEAST = 2.2e14, far below float32's
3.4e38. The row's first weight is never dropped: its sum is above 0 whatever top_p, top_k and min_p are.

Beside the table: what steers single tokens (logit_bias, stop_token_ids, min_tokens). An id outside the vocabulary would
be an index outside a tensor there, which ends the engine, too.

Below its least value a field is either taken for what it means there (a temperature of 1e-7 is greedy, as SGLang
takes it; a top_p below any probability keeps one token; a penalty that float32 cannot hold is none) or refused, where
it means nothing that anybody could want: a repetition penalty of 0.001.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from disagg.errors import BadRequest, StartError
from disagg.fields import Body, boolean, decimal, integer, refuse, strings, whole, wrong_type
from disagg.stop_patterns import BYTES_MAX, complaint_about

INT64_MAX = 2**63 - 1
FLOAT32_LEAST = 2.0**-126  # the least normal one: below it GPUs take a number for 0, or lose its digits
TEMPERATURE_LEAST = 1e-6  # SGLang's _SAMPLING_EPS: below it, it takes the likeliest token
TOP_P_LEAST = 1e-6  # the likeliest token is likelier in any vocabulary of fewer than a million: it is kept alone
REPETITION_LEAST = 0.01
INT32_MAX = 2**31 - 1
BIAS_MOST = 100.0
BIASES_MAX = 1024
STOP_IDS_MAX = 256
STOP_PATTERNS_MAX = 4
GRAMMARS = ("json_schema", "regex", "ebnf", "structural_tag")  # in SGLang's sampling
TOP_K_MAX = 1 << 30  # SGLang's word for the whole vocabulary; its batch holds 32 bits


@dataclass(frozen=True, slots=True)
class SamplingField:
    """A value of the client's `name` in [least, most] (not `least` itself if `above_least`) is taken, and the engine
    gets `engine_value` of it, under SGLang's name."""

    name: str
    engine_type: str  # of the tensor in the engine's batch
    least: float
    most: float
    engine_value: Callable[[Any], float | int]
    above_least: bool = False
    engine_name: str = ""  # where it differs

    @property
    def is_integer(self) -> bool:
        return self.engine_type.startswith("int")

    def read(self, body: Body) -> float | int | None:
        """What the engine gets for the body's value; None where there is none. Raises BadRequest."""
        value: float | int | None
        if self.is_integer:
            value = integer(body, self.name, int(self.least), int(self.most))
        else:
            value = decimal(body, self.name, self.least, self.most, above_least=self.above_least)
        return None if value is None else self.engine_value(value)


def _greedy_where_tiny(temperature: float) -> float:
    return 0.0 if temperature < TEMPERATURE_LEAST else temperature


def _nothing_where_tiny(value: float) -> float:
    return 0.0 if abs(value) < FLOAT32_LEAST else value


def _one_token_at_least(top_p: float) -> float:
    return max(top_p, TOP_P_LEAST)


def _in_32_bits(top_k: int) -> int:
    return -1 if top_k == 0 else min(top_k, TOP_K_MAX)  # 0: vLLM's and transformers' way to say off


FIELDS = (
    SamplingField("temperature", "float32", 0.0, 2.0, _greedy_where_tiny),
    SamplingField("top_p", "float32", 0.0, 1.0, _one_token_at_least, above_least=True),
    SamplingField("top_k", "int32", -1, INT64_MAX, _in_32_bits),
    SamplingField("min_p", "float32", 0.0, 1.0, _nothing_where_tiny),
    SamplingField("frequency_penalty", "float32", -2.0, 2.0, _nothing_where_tiny),
    SamplingField("presence_penalty", "float32", -2.0, 2.0, _nothing_where_tiny),
    SamplingField("repetition_penalty", "float32", REPETITION_LEAST, 2.0, _nothing_where_tiny),
    SamplingField("seed", "int64", -INT64_MAX - 1, INT64_MAX, int, engine_name="sampling_seed"),
)
_BY_NAME = {field.name: field for field in FIELDS}
NAMES = frozenset(_BY_NAME) | {"ignore_eos", "min_tokens", "logit_bias", "stop_token_ids", "stop_regex"}
DEFAULTED = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")  # what a model's makers may advise


def sampling_of(body: Body, defaults: Mapping[str, float], vocabulary: int = INT32_MAX) -> dict[str, Any]:
    """In SGLang's words, over a model's `defaults`. Limits on length and stop strings belong to the request, not here.

    A seed beside temperature 0 passes: the likeliest token is the same under every seed. `vocabulary`: how many token
    ids the model knows.
    """
    sampling: dict[str, Any] = dict(defaults)
    for name in body:
        field = _BY_NAME.get(name)
        if field is not None and (value := field.read(body)) is not None:
            sampling[field.engine_name or name] = value
    if boolean(body, "ignore_eos"):
        sampling["ignore_eos"] = True
    if least := integer(body, "min_tokens", 0, INT32_MAX):
        sampling["min_new_tokens"] = least
    for name, read in (("logit_bias", _biases), ("stop_token_ids", _stop_ids), ("stop_regex", _stop_patterns)):
        if name in body and (steers := read(body, vocabulary)):
            sampling[name] = steers
    return sampling


def _biases(body: Body, vocabulary: int) -> dict[str, float]:
    """By token id, in decimal digits as JSON has it; what adds nothing is left out."""
    given = body["logit_bias"]
    if not isinstance(given, dict):
        wrong_type("logit_bias", "an object of token ids and numbers", given)
    _refuse_more(given, "logit_bias", BIASES_MAX)
    biases = {}
    for name in given:
        here = f"logit_bias.{name[:20]}"
        if not (name.isascii() and name.isdecimal() and len(name) <= len(str(INT32_MAX))):
            refuse(here, "invalid_token_id", f"'{here}' is no token id")
        token_id = _token_id(int(name), here, vocabulary)
        try:
            bias = decimal(given, name, -BIAS_MOST, BIAS_MOST)
        except BadRequest as error:
            raise BadRequest(here, str(error.code), error.what.replace(f"'{name}'", f"'{here}'", 1)) from None
        if bias:
            biases[str(token_id)] = bias
    return biases


def _stop_ids(body: Body, vocabulary: int) -> list[int]:
    given = body["stop_token_ids"]
    if not isinstance(given, list):
        wrong_type("stop_token_ids", "a list of token ids", given)
    _refuse_more(given, "stop_token_ids", STOP_IDS_MAX)
    ids = set()
    for index, each in enumerate(given):
        here = f"stop_token_ids[{index}]"
        token_id = whole(each)
        if token_id is None:
            wrong_type(here, "a token id", each)
        if not 0 <= token_id <= INT32_MAX:
            refuse(here, "invalid_token_id", f"'{here}' is {token_id}; token ids are 0 to {INT32_MAX}")
        if token_id < vocabulary:  # another model's stops nothing here
            ids.add(token_id)
    return sorted(ids)


def _stop_patterns(body: Body, _vocabulary: int) -> list[str]:
    patterns = strings(body, "stop_regex", STOP_PATTERNS_MAX, BYTES_MAX)
    for pattern in patterns:
        if what := complaint_about(pattern):
            refuse("stop_regex", "invalid_value", f"'stop_regex' {what}")
    return list(patterns)


def _token_id(token_id: int, here: str, vocabulary: int) -> int:
    if not 0 <= token_id < vocabulary:
        what = f"'{here}' is {token_id}; token ids of this model are 0 to {vocabulary - 1}"
        refuse(here, "invalid_token_id", what)
    return token_id


def _refuse_more(given: Collection[Any], name: str, most: int) -> None:
    if len(given) > most:
        refuse(name, "array_above_max_length", f"'{name}' has {len(given)} entries; at most {most} are allowed")


def defaults_of(values: Mapping[str, Any], where: str) -> dict[str, float]:
    """A model's own defaults, through the same table. `where` names the file; raises StartError."""
    given = {name: values[name] for name in DEFAULTED if values.get(name) is not None}
    for name, what in problems_of(given):
        would_do = f"mend {name} in that file, or take it out"
        raise StartError(where, f"'{name}' {what} (sampling default of the model)", would_do)
    return sampling_of(given, {})


def problems_of(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What is wrong with values of a file, by SGLang's names: the name, and what follows it in a sentence."""
    for field in FIELDS:
        name = field.engine_name or field.name
        value = values.get(name)
        try:
            if isinstance(value, float) and not math.isfinite(value):  # Python's JSON, and YAML, read such
                yield name, f"is {value}, which is no number"
            else:
                field.read({field.name: value})
        except BadRequest as error:
            yield name, error.what.removeprefix(f"'{field.name}' ")
