"""What a model's folder says about text: tokenizer, chat template, context length, sampling defaults.

Way:   parsed request -> [Codec] -> prompt ids; and back, texts for each request's TextStream
In:    tokenizer.json, tokenizer_config.json, chat_template.jinja, config.json, generation_config.json
Fails: StartError for a folder without tokenizer.json; BadRequest from the template

transformers is not imported: that takes seconds, and a frontend restarts in one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from disagg.errors import BadRequest, StartError
from disagg.models.context import CONTEXT_KEYS, context_length
from disagg.models.text_files import read_object
from disagg.sampling import defaults_of
from disagg.tokenizer.encoder import Encoder
from disagg.tokenizer.template import ChatTemplate
from disagg.tokenizer.template_files import load_template
from disagg.tokenizer.text import Texts
from disagg.tokenizer.tokenizer_files import load_tokenizer


@dataclass(frozen=True, slots=True)
class Codec:
    folder: Path  # the model's
    encoder: Encoder
    texts: Texts
    template: ChatTemplate | None
    context_length: int
    vocabulary: int  # ids the model knows; the tokenizer may name fewer
    end_ids: frozenset[int] = frozenset()  # of these one ends an answer
    sampling_defaults: Mapping[str, float] = field(default_factory=dict)

    def with_defaults(self, stronger: Mapping[str, float]) -> Codec:
        """A codec whose sampling defaults are the deployment's where it has some, else those of the model's files."""
        defaults = defaults_of(stronger, "model.sampling_defaults")
        return replace(self, sampling_defaults={**self.sampling_defaults, **defaults})

    def text_ids(self, text: str, *, special_tokens: bool = True) -> list[int]:
        """As `tokenizer(text)`: with the special tokens this tokenizer puts around a text."""
        return self.encoder.encode(text, special_tokens=special_tokens)

    def pair_ids(self, first: str, second: str) -> tuple[list[int], int]:
        """As `tokenizer(first, second)`: the ids of a pair, and where its second text begins; 0 where the tokenizer
        does not tell the two apart (its token types are all 0)."""
        return self.encoder.encode_pair(first, second)

    def chat_ids(
        self, messages: list[dict[str, Any]], variables: Mapping[str, Any], *, special_tokens: bool = False
    ) -> list[int]:
        """As `apply_chat_template(messages, add_generation_prompt=True)`."""
        template = self.template
        if template is None:
            what = "this model has no chat template; use /v1/completions"
            raise BadRequest("messages", "no_chat_template", what)
        return self.encoder.encode(template.render(messages, variables), special_tokens=special_tokens)


def load_codec(folder: Path) -> Codec:
    tokenizer = load_tokenizer(folder)
    tokenizer_config = read_object(folder / "tokenizer_config.json")
    whole_config = read_object(folder / "config.json")
    config = whole_config.get("text_config") or whole_config
    generation_config = read_object(folder / "generation_config.json")
    return Codec(
        folder=folder,
        encoder=Encoder(tokenizer, str(folder)),
        texts=Texts(tokenizer),
        template=load_template(folder, tokenizer_config),
        context_length=_context_length(folder, config),
        vocabulary=int(config.get("vocab_size") or tokenizer.get_vocab_size()),
        end_ids=_end_ids(whole_config)
        | _end_ids(config)
        | _end_ids(generation_config)
        | _end_of_tokenizer(tokenizer, tokenizer_config),
        sampling_defaults=defaults_of(generation_config, str(folder / "generation_config.json")),
    )


def _context_length(folder: Path, config: Mapping[str, Any]) -> int:
    told = context_length(config)
    if told is None:
        what = "tells no context length"
        raise StartError(str(folder / "config.json"), what, f"give it one of {', '.join(CONTEXT_KEYS)}")
    return told


def _end_of_tokenizer(tokenizer: Tokenizer, config: Mapping[str, Any]) -> frozenset[int]:
    """The schedulers have the tokenizer (disagg/sglang/plugins/grammar.py), and SGLang ends an answer at its end token,
    too."""
    token = config.get("eos_token")
    text = token.get("content") if isinstance(token, dict) else token
    token_id = tokenizer.token_to_id(text) if isinstance(text, str) else None
    return frozenset() if token_id is None else frozenset([token_id])


def _end_ids(config: Mapping[str, Any]) -> frozenset[int]:
    """End ids of both files, as the engine takes them, too."""
    said = config.get("eos_token_id")
    return frozenset(said if isinstance(said, list) else [] if said is None else [said])
