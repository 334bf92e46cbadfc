"""The endpoints that read a body, and the fields of each: the one table of them.

Way:   [ENDPOINTS] -> unknown_fields.py (what nobody here knows), api_table.py (docs/api.md), openapi.py
Owns:  which names are known where. What a field must hold its reader says, and field_schemas.py tells
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from disagg.frontend.cache_salt import NAMES as SALTS
from disagg.frontend.inputs import FIELDS as INPUT_FIELDS
from disagg.frontend.messages_api.request import HARMLESS as HARMLESS_OF_MESSAGES
from disagg.frontend.messages_api.request import OWN as OF_MESSAGES
from disagg.frontend.native_api.request import BESIDE, RENAMED, SAME, UNREAD
from disagg.frontend.parameters import CHAT, COMPLETION, DETOKENIZE, TOKENIZE
from disagg.frontend.responses_api.request import HARMLESS as HARMLESS_OF_RESPONSES
from disagg.frontend.responses_api.request import OWN as OF_RESPONSES

Names = frozenset[str]


@dataclass(frozen=True, slots=True)
class Endpoint:
    word: str  # its row in READINGS (disagg/frontend/reading.py)
    path: str
    what: str
    reads: Names
    required: tuple[str, ...]
    harmless: Names = frozenset()  # beside those of every endpoint: they ask for nothing, and pass
    judged: Names = frozenset()  # known, and for another table to take or to refuse by name
    inner: Mapping[str, Names] = field(default_factory=dict)  # of a field that is an object: its own
    streams: bool = False

    @property
    def known(self) -> Names:
        return self.reads | self.harmless | self.judged


ENDPOINTS = (
    Endpoint("chat", "/v1/chat/completions", "A chat's answer", CHAT, ("model", "messages"), streams=True),
    Endpoint("text", "/v1/completions", "What follows a prompt", COMPLETION, ("model", "prompt"), streams=True),
    Endpoint(
        "responses",
        "/v1/responses",
        "An answer in the words of OpenAI's Responses",
        OF_RESPONSES,
        ("model", "input"),
        harmless=HARMLESS_OF_RESPONSES,
        judged=CHAT,
        streams=True,
    ),
    Endpoint(
        "messages",
        "/v1/messages",
        "An answer in the words of Anthropic's Messages",
        OF_MESSAGES,
        ("model", "messages", "max_tokens"),
        harmless=HARMLESS_OF_MESSAGES,
        judged=CHAT,
        streams=True,
    ),
    Endpoint(
        "count_tokens",
        "/v1/messages/count_tokens",
        "How many tokens a body of /v1/messages has",
        OF_MESSAGES,
        ("model", "messages"),
        harmless=HARMLESS_OF_MESSAGES,
        judged=CHAT,
    ),
    Endpoint(
        "generate",
        "/generate",
        "SGLang's own: what follows a text, or token ids",
        BESIDE | {"text", "input_ids", "sampling_params", "stream", "model", "lora_path", *SALTS},
        (),
        harmless=UNREAD,
        judged=COMPLETION,
        inner={"sampling_params": SAME | RENAMED.keys()},
        streams=True,
    ),
    Endpoint("tokenize", "/tokenize", "Token ids of a text, or of a chat", TOKENIZE, ()),
    Endpoint("detokenize", "/detokenize", "The text of token ids", DETOKENIZE, ("tokens",)),
    Endpoint("embd", "/v1/embeddings", "A vector for each input", INPUT_FIELDS["embd"], ("model", "input")),
    Endpoint("clas", "/v1/classify", "The class of each input", INPUT_FIELDS["clas"], ("input",)),
    Endpoint("rank", "/v1/rerank", "Documents, the best first", INPUT_FIELDS["rank"], ("query", "documents")),
    Endpoint("scor", "/v1/score", "A score for each item", INPUT_FIELDS["scor"], ("query", "items")),
)
BY_WORD = {endpoint.word: endpoint for endpoint in ENDPOINTS}
