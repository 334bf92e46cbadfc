"""docs/limits.md says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from disagg.config.frontend import FrontendSection
from disagg.frontend import constraints, request_body, samples, tool_choice
from disagg.frontend.body import SMALL_BYTES_MAX
from disagg.frontend.http1 import Limits
from disagg.frontend.http1.chunked import EXTENSION_BYTES_MAX, SMALL_BYTES, SMALL_CHUNKS_MAX, TRAILER_BYTES_MAX
from disagg.frontend.http1.head import METHOD_BYTES_MAX
from disagg.frontend.http1.limits import KIB, MIB
from disagg.frontend.inputs import LABELS_MAX
from disagg.frontend.native_api.request import CHOSEN_IDS_MAX
from disagg.frontend.open_files import RESERVED
from disagg.frontend.parsing import CONSTRAINT_BYTES_MAX
from disagg.frontend.readers import READ_S, READERS_MAX
from disagg.frontend.reading import CARRIED_MAX
from disagg.frontend.server import KEEPALIVE
from disagg.frontend.tokenizing import BATCH_MAX, TOKENS_MAX
from disagg.plane.messages import READ_BYTES_MAX
from disagg.process.body_readers import HELD_BYTES_MAX, WAIT_S
from disagg.sampling import BIASES_MAX, STOP_IDS_MAX, STOP_PATTERNS_MAX
from disagg.tokenizer.short_bodies import SHORT_BRACES, SHORT_BYTES

PAGE = Path(__file__).parents[2] / "docs" / "limits.md"


def test_the_page_has_the_numbers_of_the_code() -> None:
    limits, frontend = Limits(), FrontendSection()
    gone_s = KEEPALIVE["TCP_KEEPIDLE"] + KEEPALIVE["TCP_KEEPINTVL"] * KEEPALIVE["TCP_KEEPCNT"]
    body_kib_s, flush_kib_s = limits.body_bytes_per_s / KIB, limits.flush_bytes_per_s / KIB
    rows = [
        f"request line and header fields | {limits.head_bytes // KIB} KiB |",
        f"the request target | {limits.target_bytes // KIB} KiB |",
        f"header fields | {limits.fields} |",
        f"a method | {METHOD_BYTES_MAX} bytes |",
        f"a body | `frontend.body_limit_mib` ({frontend.body_limit_mib}) |",
        f"`/unload_lora_adapter` | {SMALL_BYTES_MAX // KIB} KiB |",
        f"chunks of less than {SMALL_BYTES} bytes in a body | {SMALL_CHUNKS_MAX} |",
        f"its trailers | {EXTENSION_BYTES_MAX // KIB} KiB, {TRAILER_BYTES_MAX // KIB} KiB |",
        f"(a wrong path, no key) | {limits.rest_bytes // KIB} KiB |",
        f"wait behind a running one | {limits.head_bytes // KIB} KiB |",
        f"requests on a connection | {limits.requests} |",
        f"from its first byte | {limits.head_s:g} s |",
        f"without a request | {limits.idle_s:g} s |",
        f"`n`, `best_of` | {request_body.N_MAX} |",
        f"`n` of each prompt | {request_body.PROMPTS_MAX}; {request_body.SAMPLES_MAX} |",
        f"tokens of all prompts of a body | {request_body.PROMPT_TOKENS_MAX:,}, or the model's context",
        f"where there are several | {samples.OUTPUT_TOKENS_MAX:,} |",
        f"named beside each | {samples.PROMPT_LOGPROBS_MAX:,} |",
        f"`top_logprobs` | {request_body.TOP_LOGPROBS_MAX} |",
        f"`label_token_ids` | {CHOSEN_IDS_MAX}, {LABELS_MAX:,} |",
        f"chosen ids beside each | {samples.CHOSEN_LOGPROBS_MAX:,} |",
        f"`stop_regex` | {request_body.STOP_STRINGS_MAX}, {request_body.STOP_CHARACTERS_MAX}; {STOP_IDS_MAX}; "
        f"{STOP_PATTERNS_MAX} |",
        f"entries of `logit_bias` | {BIASES_MAX:,} |",
        f"values and names | {constraints.SCHEMA_BYTES_MAX // KIB} KiB, {constraints.SCHEMA_DEPTH_MAX}, "
        f"{constraints.SCHEMA_NODES_MAX:,} |",
        f"choices | {constraints.REGEX_BYTES_MAX // KIB} KiB, {constraints.GRAMMAR_BYTES_MAX // KIB} KiB, "
        f"{constraints.CHOICES_MAX:,} of {constraints.CHOICES_BYTES_MAX // KIB} KiB in all |",
        f"the schema's depth | {tool_choice.TOOLS_MAX}; {tool_choice.DESCRIPTION_CHARACTERS_MAX:,} letters, "
        f"{tool_choice.SCHEMA_BYTES_MAX // KIB} KiB, {tool_choice.SCHEMA_DEPTH_MAX} |",
        f"field that a response repeats | {tool_choice.SCHEMAS_NODES_MAX:,} |",
        f"an answer's grammar | {CONSTRAINT_BYTES_MAX // KIB} KiB |",
        "messages, documents, prompt and answer | the model's context, in tokens |",
        "prompt and answer together | what an engine can hold |",
        f"a body | {limits.body_grace_s:g} s, and a second more for each {body_kib_s:g} KiB that came |",
        f"whatever the answer | {limits.write_s:g} s |",
        f"JSON, template, token ids | {READ_S:g} s of a processor |",
        f"tokens, of one body | {BATCH_MAX:,}, and {TOKENS_MAX:,} or the model's context where that is more |",
        f"a complete answer | {limits.write_s:g} s, and a second more for each {flush_kib_s:g} KiB |",
        f"when its connection closes | {limits.linger_s:g} s, {limits.linger_bytes // MIB} MiB |",
        f"network is gone | {gone_s} s without a sign",
        f"`frontend.connections_max` ({frontend.connections_max})",
        f"{RESERVED} stay for engines",
        f"`frontend.held_limit_mib` ({frontend.held_limit_mib})",
        f"bodies above {SHORT_BYTES // KIB} KiB, or with more than {SHORT_BRACES} braces, that are read at once "
        f"| {READERS_MAX}, each by a process of its own; the others wait {WAIT_S:g} s |",
        f"read so, or wait for it | {HELD_BYTES_MAX // MIB} MiB |",
        f"has to read for one frontend | {READ_BYTES_MAX // MIB} MiB |",
        f"have not taken of answers | {limits.unsent_bytes // MIB} MiB |",
    ]
    assert CARRIED_MAX == tool_choice.SCHEMAS_NODES_MAX
    text = PAGE.read_text()
    assert [row for row in rows if row not in text] == []
    assert (limits.connections, limits.held_bytes // MIB) == (frontend.connections_max, frontend.held_limit_mib)
    assert len(re.findall(r"(?m)^\| (?!what \||---)", text)) == len(rows)  # a row more needs a line here
