"""SGLang's own /generate, as its clients and its tests speak it: a completion in other words."""

from disagg.frontend.native_api.form import NativeSaying, NativeStream, NativeWhole
from disagg.frontend.native_api.request import chosen_ids, completion_body, is_list, own_words, prompt_logprobs_from

__all__ = [
    "NativeSaying",
    "NativeStream",
    "NativeWhole",
    "chosen_ids",
    "completion_body",
    "is_list",
    "own_words",
    "prompt_logprobs_from",
]
