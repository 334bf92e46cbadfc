"""What a model's folder says about text: tokenizer, chat template, context length, sampling defaults.

Way:   parsed request -> [Codec] -> prompt ids; and back, texts for each request's TextStream
In:    tokenizer.json, tokenizer_config.json, chat_template.jinja, config.json, generation_config.json; what the
       deployment says over these
Fails: StartError for a folder without tokenizer.json; BadRequest from the template

transformers is not imported: that takes seconds, and a frontend restarts in one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from tokenizers import Tokenizer

from disagg.errors import BadRequest, StartError
from disagg.models.context import CONTEXT_KEYS, context_length
from disagg.models.text_files import read_object
from disagg.sampling import defaults_of
from disagg.tokenizer.encoder import Encoder
from disagg.tokenizer.overrides import Overrides
from disagg.tokenizer.template import ChatTemplate, Message, Tools
from disagg.tokenizer.template_files import TOOL_USE, load_template, made, special_tokens
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
    tool_template: ChatTemplate | None = None  # for chats with tools, where the model has one of its own for them
    overrides: Overrides = field(default_factory=Overrides)

    def text_ids(self, text: str, *, special_tokens: bool = True) -> list[int]:
        """As `tokenizer(text)`: with the special tokens this tokenizer puts around a text."""
        return self.encoder.encode(text, special_tokens=special_tokens)

    def pair_ids(self, first: str, second: str) -> tuple[list[int], int]:
        """As `tokenizer(first, second)`: the ids of a pair, and where its second text begins; 0 where the tokenizer
        does not tell the two apart (its token types are all 0)."""
        return self.encoder.encode_pair(first, second)

    def chat_ids(
        self,
        messages: list[Message],
        variables: Mapping[str, Any],
        *,
        tools: Tools | None = None,
        documents: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        special_tokens: bool = False,
    ) -> list[int]:
        """As `apply_chat_template(messages, add_generation_prompt=True)`. `tools`: None, or one at least."""
        template = self.tool_template if tools and self.tool_template is not None else self.template
        if template is None:
            what = "this model has no chat template; use /v1/completions"
            raise BadRequest("messages", "no_chat_template", what)
        if defaults := self.overrides.chat_template_kwargs:
            variables = {**defaults, **variables}
        prompt = template.render(
            messages,
            variables,
            tools=tools,
            documents=documents,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
        )
        return self.encoder.encode(prompt, special_tokens=special_tokens)

    def text_of(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        return cast(str, self.texts.tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens))

    def token_strings(self, token_ids: list[int]) -> list[str]:
        """As the vocabulary has them: a byte-level one writes a blank as one letter of its own."""
        return [self.texts.tokenizer.id_to_token(token_id) or "" for token_id in token_ids]


def load_codec(
    folder: Path, overrides: Overrides = Overrides(), load: Callable[[Path], Tokenizer] = load_tokenizer
) -> Codec:
    """`load`: another one where transformers is there (any_tokenizer.py)."""
    tokenizer = load(folder)
    tokenizer_config = read_object(folder / "tokenizer_config.json")
    whole_config = read_object(folder / "config.json")
    config = whole_config.get("text_config") or whole_config
    generation_config = read_object(folder / "generation_config.json")
    template, tool_template = _templates(folder, overrides)
    return Codec(
        folder=folder,
        encoder=Encoder(tokenizer, str(folder)),
        texts=Texts(tokenizer),
        template=template,
        context_length=_context_length(folder, config),
        vocabulary=int(config.get("vocab_size") or tokenizer.get_vocab_size()),
        end_ids=_end_ids(whole_config)
        | _end_ids(config)
        | _end_ids(generation_config)
        | _end_of_tokenizer(tokenizer, tokenizer_config),
        sampling_defaults={
            **defaults_of(generation_config, str(folder / "generation_config.json")),
            **defaults_of(overrides.sampling_defaults, "model.sampling_defaults"),
        },
        tool_template=tool_template,
        overrides=overrides,
    )


def _templates(folder: Path, overrides: Overrides) -> tuple[ChatTemplate | None, ChatTemplate | None]:
    """(for chats, for chats with tools)"""
    config = read_object(folder / "tokenizer_config.json")
    if overrides.chat_template is not None:
        return made(overrides.chat_template, special_tokens(folder, config), "model.chat_template"), None
    return load_template(folder, config), load_template(folder, config, TOOL_USE)


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
