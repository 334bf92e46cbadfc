"""The chat template that a deployment brings.

Way:   Subject -> [these rules] -> Problems
"""

from __future__ import annotations

from collections.abc import Iterator

from disagg.errors import Problem, StartError
from disagg.preflight.rule import rule
from disagg.preflight.subject import Subject

HERE = "model.chat_template"
SPECIAL_TOKENS = {f"{name}_token": f"<{name}>" for name in ("bos", "eos", "unk", "pad", "sep", "cls", "mask")}


@rule("", "mend the template; transformers' documentation of chat templates says what they may hold")
def _chat_template(subject: Subject) -> Iterator[Problem]:
    """the frontend stops when its engines have loaded, or answers every chat with 400"""
    source = subject.setting(HERE)
    if not isinstance(source, str):
        return
    from disagg.tokenizer.template_files import made  # Jinja is imported only for those who bring one

    try:
        template = made(source, SPECIAL_TOKENS, HERE)
    except StartError as error:
        yield Problem(HERE, error.what)
        return
    if "user" in template.mute:
        yield Problem(HERE, "shows nothing of what a user says")
