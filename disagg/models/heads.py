"""What a model makes of a text beside tokens: a vector, which may be cut or not, or a score for each of its classes.

Way:   model's folder -> [head_of] -> /v1/embeddings, /v1/rerank, /v1/score, /v1/classify
In:    config.json, read as SGLang reads it
Fails: StartError for a config.json that cannot be read
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from disagg.models.text_files import read_object

SCORING = ("ForSequenceClassification", "ForSequenceClassificationWithNormal_Weights", "ForRewardModel")
CLASSES = 2  # transformers' own number where a config.json says none


@dataclass(frozen=True, slots=True)
class Head:
    """`classes`: names by index; empty for a model that makes plain vectors. `hidden`: numbers of such a vector."""

    classes: tuple[str, ...] = ()
    hidden: int = 0
    can_be_cut: bool = False  # it was trained so that the first numbers of a vector are a vector (Matryoshka)
    lengths: tuple[int, ...] = ()  # those that it was trained for; empty: any

    @property
    def scores(self) -> bool:
        return bool(self.classes)


def head_of(folder: Path) -> Head:
    config = read_object(folder / "config.json")
    lengths = config.get("matryoshka_dimensions")
    told = tuple(lengths) if isinstance(lengths, list) else ()
    hidden = config.get("hidden_size")
    return Head(
        classes=_classes(config),
        hidden=hidden if isinstance(hidden, int) else 0,
        can_be_cut=bool(told or config.get("is_matryoshka")),
        lengths=told,
    )


def _classes(config: Mapping[str, Any]) -> tuple[str, ...]:
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or not any(str(name).endswith(SCORING) for name in architectures):
        return ()
    names = config.get("id2label")
    if isinstance(names, dict) and names:
        return tuple(str(names.get(str(index), f"LABEL_{index}")) for index in range(len(names)))
    count = config.get("num_labels")
    return tuple(f"LABEL_{index}" for index in range(count if isinstance(count, int) and count > 0 else CLASSES))
