"""A tokenizer that xgrammar cannot read is a warning, unless the configuration says that grammars matter."""

from __future__ import annotations

import pytest

from disagg.preflight.all_rules import problems
from disagg.preflight.api import subject_of
from disagg.preflight.grammar_rules import _grammar_tokens, grammar_warnings
from tests.preflight.mistakes import Mistake, model_of


@pytest.mark.parametrize(
    ("decoder", "sets", "is_refused", "is_told"),
    [
        (["WordPiece"], (), False, True),
        (["WordPiece"], ("model.tool_call_parser=hermes",), True, False),
        (["WordPiece"], ("prefill.engine.grammar_backend=none", "decode.engine.grammar_backend=none"), False, False),
        (["ByteFallback", "ByteLevel"], (), True, False),  # taken for another kind: seen with SmolLM2
        (["ByteLevel"], (), False, False),
    ],
)
def test_what_is_refused_and_what_is_told(
    decoder: list[str], sets: tuple[str, ...], is_refused: bool, is_told: bool
) -> None:
    mistake = Mistake("", "", "llama", "", "", "", sets=sets, nodes={"0": {"files": {"decoder": decoder}}})
    subject = subject_of(mistake.plan(), mistake.cluster(), model_of("llama"))
    assert bool(problems(subject, [_grammar_tokens])) is is_refused
    warnings = list(grammar_warnings(subject))
    assert bool(warnings) is is_told
    if is_told:
        assert "WordPiece" in warnings[0]
        assert "grammar_backend: llguidance" in warnings[0]
