"""Anthropic's Messages as a thin translation: a body into a chat's, an answer's parts into its events and objects."""

from disagg.frontend.messages_api.errors import error_body
from disagg.frontend.messages_api.form import MessagesStream, MessageWhole, tokens_counted
from disagg.frontend.messages_api.request import chat_body, own_words

__all__ = ["MessageWhole", "MessagesStream", "chat_body", "error_body", "own_words", "tokens_counted"]
