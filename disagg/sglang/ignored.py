"""Sampling parameters that SGLang takes and does not heed, under the arguments an engine runs with.

Way:   sglang.Engine, up -> [ignored_parameters] -> EngineFacts -> registry -> frontend/generation.py refuses them
Why:   a client that sends a seed wants the same answer again, and cannot see that the seed was ignored
Read:  SGLang 0.5.16 to 0.5.23, layers/sampler.py and speculative/eagle_utils.py
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

GRAMMAR = "grammar"  # stands for every field that constrains an answer (disagg/frontend/constraints.py)
OTHER_RELEASE = "install an SGLang release that disagg's plugins fit (docs/sglang-versions.md)"


def ignored_parameters(server_args: Any, switched_off: Collection[str] = ()) -> dict[str, str]:
    """By their names in a request, with what would do. `server_args`: SGLang's own, its defaults filled in."""
    ignored = {}
    if backend_lacks := _without_seeds(server_args, switched_off):
        ignored["seed"] = backend_lacks
    if "grammar" in switched_off:
        ignored |= dict.fromkeys((GRAMMAR, "min_tokens", "stop_regex"), OTHER_RELEASE)
    elif server_args.grammar_backend == "none":
        ignored[GRAMMAR] = "say grammar_backend: xgrammar in the engine's arguments"
    if "first_logprobs" in switched_off:
        ignored["token_ids_logprob"] = OTHER_RELEASE
    if "salts" in switched_off:
        ignored["cache_salt"] = OTHER_RELEASE
    if server_args.speculative_algorithm:  # its verifier heeds temperature, top_k and top_p, penalties and biases alone
        ignored["min_p"] = "leave out speculative_algorithm, or say top_p"
    return ignored


def _without_seeds(server_args: Any, switched_off: Collection[str]) -> str:
    """What would do; "" where seeds are heeded."""
    if server_args.speculative_algorithm:
        return "leave out speculative_algorithm in the engine's arguments"
    if server_args.sampling_backend != "pytorch":  # those of flashinfer and ascend take no seed of a request
        return "say sampling_backend: pytorch in the engine's arguments"
    if "seeds" in switched_off and not server_args.enable_deterministic_inference:
        return OTHER_RELEASE
    return ""
