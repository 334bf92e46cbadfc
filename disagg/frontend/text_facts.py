"""What a frontend has to know of its model's text side, beside what it asks of a tokenizer for each request.

Way:   model's folder -> Codec -> [facts_of], here or in an engine's host -> limits, parsers, embeddings
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from disagg.models.heads import Head, head_of
from disagg.models.hub_config import HubConfig
from disagg.models.text_files import read_object

if TYPE_CHECKING:
    from disagg.tokenizer.codec import Codec

FACTS = "facts"  # a reader's word for these


class TextFacts(msgspec.Struct, frozen=True, kw_only=True):
    context_length: int
    vocabulary: int  # ids the model knows
    end_ids: frozenset[int]  # of these one ends an answer
    head: Head
    template: str | None  # of chats
    added_tokens: dict[str, bool]  # beside the vocabulary, and whether each is special
    architecture: str  # as config.json names it; empty: it does not


def facts_of(codec: Codec) -> TextFacts:
    return TextFacts(
        context_length=codec.context_length,
        vocabulary=codec.vocabulary,
        end_ids=codec.end_ids,
        head=head_of(codec.folder),
        template=codec.template.source if codec.template is not None else None,
        added_tokens=codec.encoder.added_tokens(),
        architecture=HubConfig.of("config.json", read_object(codec.folder / "config.json")).architecture,
    )
