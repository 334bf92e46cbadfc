"""Which API says an answer in which form: one row for each.

Way:   Answering -> FORMS[its api] -> StreamForm, or WholeForm -> choices.py
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from disagg.frontend.answering import Answering
from disagg.frontend.chat_form import ChatStream, ChatWhole
from disagg.frontend.completion_form import Saying
from disagg.frontend.messages_api import MessagesStream, MessageWhole
from disagg.frontend.native_api import NativeSaying, NativeStream, NativeWhole
from disagg.frontend.parts import StreamForm, WholeForm
from disagg.frontend.responses_api import ResponseHead, ResponsesStream, ResponseWhole
from disagg.frontend.text_form import TextCompletionStream, TextCompletionWhole


@dataclass(frozen=True, slots=True)
class Forms:
    stream: Callable[[Answering], StreamForm]
    whole: Callable[[Answering], WholeForm]


def _saying(answering: Answering) -> Saying:
    asked = answering.asked
    return Saying(
        id=answering.id,
        created_s=answering.created_s,
        model=answering.model,
        token_text=answering.tokenization.token_text,
        include_usage=asked.include_usage,
        usage_so_far=answering.usage if asked.continuous_usage else None,
        prompt_ids=answering.prompt_of if asked.return_token_ids else None,
        tells_prompt_logprobs=asked.prompt_logprobs is not None,
    )


def _native(answering: Answering) -> NativeSaying:
    asked = answering.asked
    return NativeSaying(
        ids=[request.id for request in answering.requests],
        prompts=[request.prompt_ids for request in answering.requests],
        received_at_s=answering.received_at_s,
        token_text=answering.tokenization.token_text if asked.said["with_texts"] else None,
    )


def response_head(answering: Answering) -> ResponseHead:
    said = answering.asked.said
    return ResponseHead(
        request_id=answering.id,
        created_s=answering.created_s,
        model=answering.model,
        echo=said["echo"],
        summarises=said["summarises"],
        seals=said["seals"],
        token_text=answering.tokenization.token_text,
    )


FORMS: Mapping[str, Forms] = {
    "chat": Forms(lambda a: ChatStream(_saying(a)), lambda a: ChatWhole(_saying(a))),
    "text": Forms(lambda a: TextCompletionStream(_saying(a)), lambda a: TextCompletionWhole(_saying(a))),
    "generate": Forms(
        lambda a: NativeStream(_native(a)), lambda a: NativeWhole(_native(a), is_list=a.asked.said["is_list"])
    ),
    "responses": Forms(lambda a: ResponsesStream(response_head(a)), lambda a: ResponseWhole(response_head(a))),
    "messages": Forms(
        lambda a: MessagesStream(a.id, a.model, len(a.asked.prompts[0])), lambda a: MessageWhole(a.id, a.model)
    ),
}
