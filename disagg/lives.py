"""The names of an engine, and of one incarnation of it, its life: `decode-0#3`; with several models `chat.decode-0#3`.
They are made and taken apart here alone; so are the names that adapters of several models have in the registry."""

from __future__ import annotations


def life_of(engine_id: str, incarnation: int) -> str:
    return f"{engine_id}#{incarnation}"


def engine_id_of(life: str) -> str:
    """The engine's id in a life's name; a text that is no life is returned whole."""
    return life.partition("#")[0]


def engine_id_in(group: str, name: str) -> str:
    """Of an engine of this one of several models; of the only model (an empty group) the name alone."""
    return f"{group}.{name}" if group else name


def number_of(engine_id: str) -> int:
    """Among those of its role; of a text that is no engine's name 0."""
    number = engine_id.rpartition("-")[2]
    return int(number) if number.isdecimal() else 0


def adapter_key(group: str, name: str) -> str:
    """What the registry and the controller call an adapter of this one of several models."""
    return f"{group}:{name}" if group else name


def adapter_in(key: str) -> tuple[str, str]:
    """(which of several models, the adapter's name): no adapter's name holds a ':'."""
    group, _, name = key.rpartition(":")
    return group, name


def group_of(engine_or_life: str) -> str:
    """Which of several models an engine has; empty where there is one."""
    return engine_id_of(engine_or_life).rpartition(".")[0]
