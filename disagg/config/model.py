"""A model in the YAML: where it is, what clients call it, and how its text is read and written.

Way:   schema -> [ModelSection]
Fails: pydantic's ValidationError
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from disagg.adapters import ADAPTERS_MAX, problem_of_name
from disagg.config.lora import LoraSection
from disagg.config.sampling_defaults import SamplingDefaults
from disagg.config.section import Section

PATH_BYTES_MAX, NAME_BYTES_MAX = 4095, 255  # <linux/limits.h>

OF_REQUESTS = frozenset({"messages", "tools", "documents", "add_generation_prompt"})  # to a chat template

ParserName = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]


class ModelSection(Section):
    """`path` is a folder, a name of `disagg model` (smollm2), or a hub id. Clients say `name`."""

    path: Annotated[str, Field(min_length=1)]
    """A folder, a name of `disagg model list`, or a hub id (owner/name)."""
    revision: str | None = None
    """Of a hub id: a branch, a tag or a commit."""
    name: str = ""
    """What clients say; default: the last part of path."""
    trust_remote_code: bool = False
    """Engines run Python code that comes with the model. The frontend never does."""
    tokenization: Literal["frontend", "engine"] = "frontend"
    """Which process turns text into ids and ids into text. engine: the engines' hosts, so that the frontend needs no
    file of the model, and any tokenizer will do that transformers reads."""
    tool_call_parser: ParserName | None = None
    """Reads tool calls out of the model's text: a name that SGLang here has, or auto: from the model's chat template.
    Without one, requests with tools are refused."""
    reasoning_parser: ParserName | None = None
    """Tells the model's reasoning from its answer: a name that SGLang here has, or auto: from its chat template."""
    sampling_defaults: SamplingDefaults = SamplingDefaults()
    """For requests that do not name the value; stronger than the model's own generation_config.json."""
    chat_template: str | None = None
    """In the place of the model's own: a Jinja file, from this file's folder, or its text."""
    chat_template_kwargs: dict[str, Any] = Field({})
    """Variables of the chat template, as enable_thinking; a request's own chat_template_kwargs are stronger."""

    lora: LoraSection | None = None
    """LoRA adapters that clients may name."""

    @field_validator("lora")
    @classmethod
    def _named_apart(cls, lora: LoraSection | None, info: ValidationInfo) -> LoraSection | None:
        adapters = lora.adapters if lora else {}
        for name in adapters:
            if problem := problem_of_name(name, info.data.get("name", "")):
                raise ValueError(f"adapters.{name[:100]} {problem}; give it another name")
        if len(adapters) > ADAPTERS_MAX:
            raise ValueError(f"has {len(adapters)} adapters, and {ADAPTERS_MAX} are the most; leave some out")
        return lora

    @field_validator("path")
    @classmethod
    def _can_be_a_path(cls, path: str) -> str:
        if "\0" in path:
            raise ValueError("holds a NUL, which no name can; take it out")
        if len(path.encode()) > PATH_BYTES_MAX or any(len(part.encode()) > NAME_BYTES_MAX for part in path.split("/")):
            raise ValueError(f"has {len(path)} letters, more than a file's name can have; say a folder or a hub id")
        try:
            Path(path).expanduser()
        except RuntimeError:
            said = f"begins with {path.split('/')[0]}, and that user is not known here; say the whole path"
            raise ValueError(said) from None
        return path

    @field_validator("revision")
    @classmethod
    def _only_of_a_hub_id(cls, revision: str | None, info: ValidationInfo) -> str | None:
        path = info.data.get("path", "")
        if revision is not None and path.startswith(("/", ".", "~")):
            raise ValueError(f"a folder has no revision, and model.path is {path}; leave it out")
        return revision

    @field_validator("chat_template_kwargs")
    @classmethod
    def _not_what_requests_say(cls, variables: dict[str, Any]) -> dict[str, Any]:
        for name in sorted(OF_REQUESTS & variables.keys()):
            raise ValueError(f"{name} is what a request says, not a variable of the template; leave it out")
        return variables

    @model_validator(mode="before")
    @classmethod
    def _name_from_path(cls, tree: Any) -> Any:
        if isinstance(tree, dict) and tree.get("name") in (None, "") and isinstance(tree.get("path"), str):
            path = Path(tree["path"])
            return {**tree, "name": path.name or path.resolve().name or "model"}
        return tree
