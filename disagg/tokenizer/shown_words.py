"""Whether a rendered prompt holds a text: as it is, trimmed, or written otherwise by its template.

Way:   ChatTemplate -> [is_in] -> a prompt, or a 400 that names the message which was left out
Fails: never
"""

from __future__ import annotations

import json

import jinja2.filters

CUT_WORDS_MAX = 16  # words of a text that its template cut or wrote otherwise: /no_think, "quoted", <tags>


def is_in(content: str | list[dict[str, str]], prompt: str) -> bool:
    """Whether all that a message says is there, in the template's own way of writing it."""
    if type(content) is str:
        if _stands_in(content, prompt) or content.strip() in prompt:
            return True
        return any(quoted in prompt for quoted in _quoted(content)) or _words_are_in(content, prompt)
    return all(is_in(part["text"], prompt) for part in content if isinstance(part, dict))


def _stands_in(text: str, prompt: str) -> bool:
    """`text in prompt`; a search for a long text costs more than one for its beginning."""
    at = prompt.find(text[:32])
    return at >= 0 and (prompt.startswith(text, at) or text in prompt)


def _words_are_in(text: str, prompt: str) -> bool:
    """For a template that writes a text otherwise, or takes its own commands out of it (/no_think)."""
    there = set(prompt.split())
    others = {word for word in text.split() if word not in there}
    return len(others) <= CUT_WORDS_MAX and all(
        word[0] in "/<" or any(form in prompt for form in _written(word)) for word in others
    )


def _written(word: str) -> tuple[str, ...]:
    as_html = str(jinja2.filters.FILTERS["escape"](word))
    return word, *_quoted(word), as_html


def _quoted(text: str) -> tuple[str, str]:
    """As in a JSON string: some templates write all that a tool said so."""
    return json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1]
