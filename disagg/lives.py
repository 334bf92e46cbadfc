"""The name of one incarnation of an engine, its life: `decode-0#3`. It is made and taken apart here alone."""

from __future__ import annotations


def life_of(engine_id: str, incarnation: int) -> str:
    return f"{engine_id}#{incarnation}"


def engine_id_of(life: str) -> str:
    """The engine's id in a life's name; a text that is no life is returned whole."""
    return life.partition("#")[0]
