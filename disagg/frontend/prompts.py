"""The token ids of one prompt, from what a checked body says of it.

Way:   body -> reading.py -> [chat_ids_of, kept_of] -> CompletionRequest
Out:   of a chat what its template makes of messages, tools and documents; of a prompt that is too long its end, where
       the client asked for that
Fails: BadRequest, naming the parameter
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from disagg.fields import Body, boolean, integer, refuse, required, typed
from disagg.frontend.messages import messages_of
from disagg.frontend.template_variables import template_variables

if TYPE_CHECKING:
    from disagg.tokenizer.codec import Codec

TRUNCATE = "truncate_prompt_tokens"
WHOLE_CONTEXT = -1


def chat_ids_of(body: Body, codec: Codec, limit: int, tools: list[dict[str, Any]] | None = None) -> list[int]:
    """`limit`: tokens; more messages than that are refused unread. `tools`: as the template shows them."""
    goes_on = boolean(body, "continue_final_message")
    begins = boolean(body, "add_generation_prompt", absent=not goes_on)
    if goes_on and begins:
        what = "'continue_final_message' and 'add_generation_prompt' are both true; the answer goes on, or begins"
        refuse("continue_final_message", "invalid_value", what)
    return codec.chat_ids(
        messages_of(required(body, "messages"), limit),
        template_variables(body),
        tools=tools,
        documents=_documents(body, limit) if "documents" in body else None,
        add_generation_prompt=begins,
        continue_final_message=goes_on,
        # Put around the prompt by the tokenizer: a template has written them itself.
        special_tokens=boolean(body, "add_special_tokens"),
    )


def _documents(body: Body, context_length: int) -> list[dict[str, Any]] | None:
    documents = typed(list, body["documents"], "documents")
    if len(documents) > context_length:
        what = f"'documents' has {len(documents)} entries; the model's context is {context_length} tokens"
        refuse("documents", "context_length_exceeded", what)
    return [typed(dict, each, f"documents[{index}]") for index, each in enumerate(documents)] or None


def kept_of(body: Body, context_length: int, answer_tokens: int) -> int | None:
    """How many of a prompt's last ids are kept (vLLM's truncate_prompt_tokens); None: all. -1: as many as leave room
    for the answer."""
    if TRUNCATE not in body:
        return None
    kept = integer(body, TRUNCATE, WHOLE_CONTEXT, context_length)
    if kept == 0:
        refuse(TRUNCATE, "invalid_value", f"'{TRUNCATE}' is 0; say how many of the last tokens to keep, or -1")
    return max(1, context_length - answer_tokens) if kept == WHOLE_CONTEXT else kept
