"""Whether a chat template takes a message's content as one text or as a list of typed parts.

Way:   a template's source -> [loops_over_parts] -> ChatTemplate, which also tries both (disagg/tokenizer/template.py)
Out:   what SGLang's detect_jinja_template_content_format says of the same source (a test compares)
Fails: never; a source that does not parse loops over nothing
"""

from __future__ import annotations

import jinja2
from jinja2 import nodes

MESSAGE_NAMES = ("message", "msg", "m")
MEDIA = ("image", "audio", "video", "vision")


def loops_over_parts(environment: jinja2.Environment, source: str) -> bool:
    """A template that speaks of media, or that loops over the content of a message, takes parts."""
    if any(word in source for word in MEDIA):
        return True
    try:
        tree = environment.parse(source)
    except jinja2.TemplateError:
        return False
    return any(_is_content(loop.iter) for loop in tree.find_all(nodes.For))


def _is_content(node: nodes.Node | None) -> bool:
    """`message['content']` or `message.content`, also filtered, tested or sliced."""
    if isinstance(node, nodes.Filter | nodes.Test):
        return _is_content(node.node)
    if isinstance(node, nodes.Getitem):
        if isinstance(node.arg, nodes.Slice):
            return _is_content(node.node)
        return isinstance(node.arg, nodes.Const) and node.arg.value == "content" and _is_message(node.node)
    return isinstance(node, nodes.Getattr) and node.attr == "content" and _is_message(node.node)


def _is_message(node: nodes.Node) -> bool:
    return isinstance(node, nodes.Name) and node.ctx == "load" and node.name in MESSAGE_NAMES
