"""What grammars need: a tokenizer that xgrammar reads as it is meant, and the same settings on both sides.

Way:   Subject -> [these rules] -> Problems
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from disagg.errors import Problem
from disagg.preflight.kv_rules import differences
from disagg.preflight.rule import pool_rule, rule
from disagg.preflight.subject import PoolView, Subject

SETTINGS = (
    "grammar_backend",
    "constrained_json_disable_any_whitespace",
    "constrained_json_whitespace_pattern",
    "constrained_json_max_whitespace_cnt",
)


@rule("seen here", "say the same on every prefill and decode pool")
def _grammar_settings(subject: Subject) -> Iterator[Problem]:
    """each constrained request is refused by one side, or decode does not take the token that prefill began with"""
    return differences(subject.split, *SETTINGS)


@rule("xgrammar's TokenizerInfo", "say grammar_backend: llguidance, or none if no client asks for grammars")
def _grammar_tokens(subject: Subject) -> Iterator[Problem]:
    """answers under a grammar with a space in it break off: xgrammar knows a tokenizer's tokens by its decoder, by
    ByteFallback (of pieces) before ByteLevel (of bytes), and takes all others word for word"""
    unread = _unread_decoder(subject)
    if unread is None or not (unread.is_misread or _is_asked_for(subject)):
        return
    would_do = "leave ByteLevel alone there (`disagg model get` makes its models so), or say grammar_backend: none"
    yield Problem("model.path", unread.what, would_do if unread.is_misread else "")


@pool_rule("seen here, outlines 0.1.11", "say grammar_backend: xgrammar, or llguidance")
def _grammar_compiler(pool: PoolView) -> Iterator[Problem]:
    """one client's schema takes the engine from all others: outlines compiles in Python, in the scheduler's process,
    and one of six strings of up to 300 letters held it up until it was taken for dead"""
    if pool.get("grammar_backend") == "outlines":
        yield Problem(pool.at("grammar_backend"), "is outlines")


def grammar_warnings(subject: Subject) -> Iterator[str]:
    """A deployment that never spoke of grammars serves all the same what asks for none."""
    unread = _unread_decoder(subject)
    if unread is not None and not unread.is_misread and not _is_asked_for(subject):
        yield (
            f"model.path: {unread.what}, so answers under a grammar with a space in it (response_format and the like) "
            "break off; say grammar_backend: llguidance where clients ask for such, or none to have them refused"
        )


class _Unread(NamedTuple):
    what: str
    is_misread: bool  # taken for another kind than it is, in the place of word for word


def _unread_decoder(subject: Subject) -> _Unread | None:
    """None where xgrammar reads the tokenizer as it is meant, or nobody asks it to."""
    if all(pool.get("grammar_backend") != "xgrammar" for pool in subject.pools):
        return None
    for node in subject.used_nodes:  # all have the same, which is a rule of its own
        steps = None if node.files is None else node.files.decoder
        if node.files is None or steps is None or ("ByteLevel" in steps) != ("ByteFallback" in steps):
            continue
        what = f"{node.files.folder} on node {node.name}: the decoder of tokenizer.json is {', '.join(steps) or 'none'}"
        return _Unread(what, "ByteLevel" in steps)
    return None


def _is_asked_for(subject: Subject) -> bool:
    """Tools are: a call that is required is a grammar. (grammar_backend is xgrammar also where nobody says it.)"""
    return bool(subject.setting("model.tool_call_parser"))
