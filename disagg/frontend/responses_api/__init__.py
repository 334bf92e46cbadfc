"""OpenAI's Responses as a thin translation: a body into a chat's, an answer's parts into its events and objects."""

from disagg.frontend.responses_api.form import ResponsesStream, ResponseWhole
from disagg.frontend.responses_api.request import ResponsesRequest, own_words, previous_id, read
from disagg.frontend.responses_api.response import ResponseHead
from disagg.frontend.responses_api.store import ResponseStore, conversation, not_kept

__all__ = [
    "ResponseHead",
    "ResponseStore",
    "ResponseWhole",
    "ResponsesRequest",
    "ResponsesStream",
    "conversation",
    "not_kept",
    "own_words",
    "previous_id",
    "read",
]
