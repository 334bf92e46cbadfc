"""What differs from SGLang's own server, on purpose: docs/api.md prints it, and a test on real engines knows no other.

In:    nothing; out: DIFFERENCES, for disagg/frontend/api_table.py and tests/engines/test_same_answers.py
"""

from __future__ import annotations

import re
from dataclasses import dataclass

ANY = object()
ABSENT = "(absent)"


@dataclass(frozen=True, slots=True)
class Difference:
    """`rows`: of the test's table those that it shows itself in; "": none, other tests hold it. `fields`: of an answer.
    `theirs`: the value SGLang's server says, where it is always the same."""

    what: str
    here: str
    why: str
    rows: str = ""
    fields: str = ".*"
    theirs: object = ANY
    is_always_seen: bool = True  # else the model's words decide whether a row shows it

    def explains(self, row: str, field: str, theirs: object) -> bool:
        return (
            bool(self.rows)
            and re.search(self.rows, row) is not None
            and re.fullmatch(self.fields, field) is not None
            and (self.theirs is ANY or self.theirs == theirs)
        )


_ONE = r"choices\[\d+\]\.(message|delta)\."
_CHAT, _TEXT, _GENERATE = "^/v1/chat/completions", "^/v1/completions", "^/generate"
_RESPONSES, _MESSAGES = "^/v1/responses", "^/v1/messages"

OF_ANSWERS = (
    Difference(
        "a chat's `refusal`, of messages and of logprobs",
        "null",
        "OpenAI's clients read it; SGLang leaves it out",
        _CHAT,
        rf"({_ONE}|choices\[\d+\]\.logprobs\.)refusal",
        ABSENT,
    ),
    Difference(
        "`reasoning_content` and `tool_calls` of a message that has none",
        "left out",
        "as OpenAI's; SGLang says null",
        _CHAT,
        rf"{_ONE}(reasoning_content|tool_calls)",
        None,
    ),
    Difference(
        "`usage.reasoning_tokens`",
        "`completion_tokens_details.reasoning_tokens`, where a model reasons",
        "OpenAI's place for it; SGLang says 0 beside each answer",
        f"{_CHAT}|{_TEXT}|{_GENERATE}",
        r"(usage|(.*\.)?meta_info)\.reasoning_tokens",
        0,
    ),
    Difference(
        "`prompt_tokens_details.cached_tokens`",
        "always there",
        "SGLang says null where nothing was cached, and without `--enable-cache-report`",
        f"{_CHAT}|{_TEXT}",
        r"usage\.prompt_tokens_details(\.cached_tokens)?",
    ),
    Difference(
        "`usage: null` in the chunks of a stream",
        "only where the client asks for usage",
        "as OpenAI's",
        f"{_CHAT}|{_TEXT}",
        "usage",
        None,
    ),
    Difference(
        "`metadata.weight_version`, and in `meta_info` `weight_versions`, `num_retractions`, `dp_rank`, "
        "`cached_tokens_details`, times of its own",
        "left out",
        "they tell of one engine; a request here runs on two, and may move",
        f"{_CHAT}|{_TEXT}|{_GENERATE}",
        r"metadata\..*|(.*\.)?meta_info\.(weight_versions|num_retractions|dp_rank|cached_tokens_details|.*_ts)\b.*",
    ),
    Difference(
        "`text_offset` of a completion's logprobs",
        "where each token begins",
        "SGLang says -1",
        _TEXT,
        r"choices\[\d+\]\.logprobs\.text_offset\[\d+\]",
        -1,
    ),
    Difference(
        "`top_logprobs` for `logprobs: 0`",
        "null",
        "SGLang says an empty list, which is not one entry a token",
        f"{_TEXT} logprobs of zero",
        r"choices\[\d+\]\.logprobs\.top_logprobs",
    ),
    Difference(
        "`bytes` of a logprob",
        "the token's own bytes",
        "SGLang gives the bytes of its text, which is U+FFFD for half a character",
        f"{_CHAT} .*logprobs",
        r"choices\[\d+\]\.logprobs\.content\[\d+\]\.(top_logprobs\[\d+\]\.)?bytes\[\d+\]",
        is_always_seen=False,
    ),
    Difference(
        "a tool that the template shows",
        "as it was sent, `description` and `strict` filled in",
        "SGLang 0.5.20 adds `defer_loading: null`, some eight tokens for each tool",
        "tool",
        r"(.*\.)?usage\.(prompt|total|input)_tokens",
    ),
    Difference(
        "a message that is a call alone",
        "`content: null`, no `index` in `tool_calls`, `matched_stop` as of any answer; white space around a call is "
        "no text",
        "as OpenAI's; SGLang says an empty string, `index: 0`, and `matched_stop: null` unless streamed",
        f"{_CHAT} tools, (one|required|named|not)",
        rf"{_ONE}(content|tool_calls\[0\]\.index)|choices\[0\]\.matched_stop",
    ),
    Difference(
        "`index` in a stream of one prompt from /generate",
        "0",
        "SGLang says it where there are several; one form is easier to read",
        f"{_GENERATE}.*streamed|{_GENERATE} stream",
        r"index 0\.index",
        ABSENT,
    ),
    Difference(
        "/detokenize",
        "`prompt` beside `text`",
        "vLLM's word for it",
        "^/detokenize",
        r"prompt(\[\d+\])?",
        ABSENT,
    ),
)
OF_RESPONSES = (
    Difference(
        "`max_output_tokens`",
        "so many",
        "SGLang 0.5.20 makes two fewer",
        _RESPONSES,
        r"(.*\.)?(text|delta|output_tokens|total_tokens)",
    ),
    Difference(
        "a Responses item that was cut short",
        "`incomplete`, as its response is",
        "SGLang says `completed`",
        _RESPONSES,
        r"(.*\.)?(output\[0\]|item)\.status",
        "completed",
    ),
    Difference(
        "fields of a response, of its items, and of its usage that say nothing",
        "those that OpenAI's own have, with their defaults",
        "SGLang leaves some out, and says null for others (`logprobs`, `conversation`, `phase`)",
        _RESPONSES,
        r"(.*\.)?(background|conversation|prompt|generate_summary|service_tier|text|text\.format\.type|text\.verbosity"
        r"|top_logprobs|logprobs|phase|cache_write_tokens|max_tool_calls|prompt_cache_key|safety_identifier|created_at)",
    ),
)
OF_MESSAGES = (
    Difference(
        "`stop_sequence`, `cache_creation_input_tokens`; in a stream `stop_reason: null` and usage in its last delta",
        "there",
        "as Anthropic's; SGLang leaves them out",
        _MESSAGES,
        r"(message_start\.message\.|message_delta\.(delta\.)?)?"
        r"(stop_sequence|stop_reason|usage\.(cache_creation_|cache_read_)?input_tokens)",
        ABSENT,
    ),
    Difference(
        "`strict` of a tool of Messages",
        "its arguments follow its schema",
        "SGLang ignores it, and a call that was cut short is its text",
        f"{_MESSAGES} tool_choice",
    ),
    Difference(
        "`ping` events of a stream of Messages",
        "one after `message_start`",
        "as Anthropic's, whose clients know it",
        f"{_MESSAGES} .*stream",
        r"ping\.type",
        ABSENT,
    ),
)
OF_THE_SERVER = (
    Difference(
        "/v1/models",
        "`owned_by: disagg`; no `root`, no `parent`",
        "those are SGLang's name, and fields of OpenAI's that are gone",
        "^/v1/models",
        r"(data\[0\]\.)?(owned_by|root|parent)",
    ),
    Difference(
        "/model_info, /server_info",
        "names, versions and limits",
        "folders, arguments and internals of hosts are not for clients; `/disagg/status` is for operators",
        "^/(get_)?(model|server)_info",
    ),
    Difference(
        "/health, /ping, /health_generate",
        "a JSON object",
        "SGLang sends no body",
        "^/(health|ping|health_generate)$",
        "status|media|",
    ),
    Difference("/version", "there", "vLLM's; SGLang has none", "^/version"),
)
_REFUSAL = r"status|media|detail|object|message|type|param|code|error\.(message|type|param|code)"
OF_REFUSALS = (
    Difference(
        "the body of a refusal",
        '`{"error": {"message", "type", "param", "code"}}`, and what would do',
        "as OpenAI's, whose clients read `param` and `code`; SGLang says `object: error` with the four beside it, or "
        "`detail`",
        "^refused|no_such_path|models/other|max_tokens of zero",
        r"detail|object|message|type|param|code|error\.(message|type|param|code)",
    ),
    Difference(
        "a model that is not here",
        "404",
        "SGLang answers for any name",
        "^refused /v1/chat/completions another model",
    ),
    Difference(
        "`sampling_params` of /generate that nobody knows",
        "400 that names it",
        "SGLang ends with 500",
        "^refused /generate an unknown parameter",
        _REFUSAL,
    ),
    Difference("`suffix`", "400", "SGLang ignores it", f"{_TEXT} suffix"),
    Difference(
        "`max_tokens: 0`",
        "a completion's with `echo`: the prompt and its logprobs",
        "lm-eval asks so; SGLang refuses it, and /generate's `max_new_tokens: 0` gives no text there, 400 here",
        f"{_TEXT} echo of the prompt alone|{_GENERATE} max_new_tokens of zero",
    ),
)
ELSEWHERE = (
    Difference("a token id beyond the vocabulary", "400", "on a CPU it ends SGLang's server"),
    Difference(
        "`seed` with `n` above 1", "the samples have the seed, the seed + 1, …", "with one seed all would be the same"
    ),
    Difference(
        "`best_of`", "the likeliest `n` of so many are returned; not for streams", "SGLang has the field and ignores it"
    ),
    Difference("`top_logprobs`, `logprobs: N`", "at most 20, as OpenAI's", "129 end a prefill engine's scheduler"),
    Difference(
        "a constrained answer",
        "does not move to another engine after its first token: its loss is told",
        "the grammar's state is lost with the engine",
    ),
    Difference(
        "`cache_salt`, `extra_key`",
        "one of each for all prompts of a request; engines get one word made of the two",
        "SGLang's `extra_key` ends with the adapter's id: who guessed that would share its KV",
    ),
    Difference("`min_tokens` beside a constraint", "400", "an answer that is complete could not end"),
    Difference(
        "`stop_regex`",
        "patterns with more than 1,024 ways are refused; the last 32 tokens are searched, four patterns at most",
        "it runs in the scheduler, after each token",
    ),
    Difference(
        "`continue_final_message`", "as transformers renders it", "SGLang puts the text behind the generation prompt"
    ),
    Difference('`reasoning: {"enabled": false}`', "switches thinking off", "SGLang ignores it"),
    Difference(
        "`chat_template` in a request",
        "400; an operator sets `model.chat_template`",
        "a template is code that would run here",
    ),
    Difference(
        "a tool call of an answer that is not parsed whole",
        "its text is told as content at the end",
        "nothing that the model said is lost",
    ),
    Difference(
        "a stream of `/generate`",
        "beyond 16 KB an event comes when the answer has grown by a 256th",
        "each event holds all of it: a long answer would cost its square",
    ),
    Difference(
        "`prompt_logprobs`",
        "`rank` is null for a token that is not among the likeliest; not for streams",
        "vLLM's field; engines tell the likeliest, and no ranks",
    ),
    Difference(
        "built-in tools of Responses and Messages, `background`, stored prompts",
        "400 that names them",
        "nobody here runs them",
    ),
)
DIFFERENCES = (*ELSEWHERE, *OF_ANSWERS, *OF_RESPONSES, *OF_MESSAGES, *OF_THE_SERVER, *OF_REFUSALS)
