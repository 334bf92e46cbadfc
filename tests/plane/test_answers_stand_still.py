"""For how long answers stand still because prompts are read on their rank."""

from __future__ import annotations

from disagg.plane.ledger import Standing


def test_answers_stand_still_while_any_prompt_is_read() -> None:
    standing = Standing()
    standing.begins(1.0)
    assert standing.seconds(1.5) == 0.5
    standing.begins(2.0)
    standing.ends(3.0)
    assert standing.seconds(4.0) == 3.0
    standing.ends(4.0)
    assert standing.seconds(9.0) == 3.0
