"""Anthropic's Messages as a thin translation: a body into a chat's, an answer's parts into its events and objects."""

from disagg.frontend.messages_api.errors import error_body
from disagg.frontend.messages_api.form import MessagesStream, MessageWhole, tokens_counted
from disagg.frontend.messages_api.request import NAMES, chat_body

__all__ = ["NAMES", "MessageWhole", "MessagesStream", "chat_body", "error_body", "tokens_counted"]
