"""What a deployment says over its model's own files: keys of `model` in the YAML.

Way:   YAML -> FrontendSpec -> [Overrides] -> load_codec, in a frontend and in each of its readers
"""

from __future__ import annotations

from typing import Any

import msgspec


class Overrides(msgspec.Struct, frozen=True, kw_only=True):
    sampling_defaults: dict[str, float] = {}  # over those of generation_config.json
    chat_template: str | None = None  # its source, in the place of all templates that the model has
    chat_template_kwargs: dict[str, Any] = {}  # the template's variables; a request's are stronger
