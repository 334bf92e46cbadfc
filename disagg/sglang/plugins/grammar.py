"""SGLang plugin: grammars, min_new_tokens and stop patterns in engines that take and give token ids.

Way:   entry point of the group `sglang.srt.plugins`. In a scheduler: its start -> [give_a_tokenizer, give_a_backend];
       in the host: SamplingParams.normalize -> [let_pass]
Why:   without a tokenizer (skip_tokenizer_init) SGLang makes no grammar backend, and refuses what it reads text for.
       The ids still come in and go out as they are: no text is made of them, the schedulers alone know what tokens say
Out:   a request's grammar is compiled and followed by SGLang itself, on both legs alike; where the model reasons first,
       from the end of its reasoning on, which the request tells (disagg/reasoning_end.py)
Fails: where transformers reads no tokenizer of this model the engine serves on: SGLang refuses each grammar by name,
       and a stop pattern is refused here
Cost:  a tokenizer in each scheduler, some 75 to 120 MB with xgrammar's tables; nothing in a step without a grammar
"""

from __future__ import annotations

import inspect
import logging
import os
import sys
from collections.abc import Callable
from typing import Any

from disagg.host_spec import LIFE_VARIABLE, is_on
from disagg.reasoning_end import end_ids_of
from disagg.sglang.plugins.instead import instead_of
from disagg.stop_patterns import TAIL_TOKENS

log = logging.getLogger(__name__)

PART = "grammar"
# Compiled ones that are kept: SGLang would keep every one that a client ever thought of.
GRAMMARS_MAX = 64
GRAMMARS_BYTES_MAX = 256 << 20  # of them together; one may have tens of MB

Reasoner = Callable[[Any, list[int]], Any]  # (grammar, ids that end the reasoning) -> grammar that waits for them


class NoTokenizer:
    """In the place of one that cannot be loaded: SGLang asks it which ids end an answer; those of the model's config
    end it all the same."""

    eos_token_id = None
    additional_stop_token_ids = None

    def decode(self, _token_ids: Any, **_options: Any) -> str:
        return ""


def activate() -> None:
    if LIFE_VARIABLE not in os.environ or not is_on(PART):
        return
    from sglang.srt.sampling import sampling_params

    let_pass(sampling_params)
    if "sglang.srt.managers.scheduler" in sys.modules:
        from sglang.srt.constrained import grammar_manager
        from sglang.srt.constrained.base_grammar_backend import BaseGrammarObject, create_grammar_backend
        from sglang.srt.constrained.reasoner_grammar_backend import ReasonerGrammarObject
        from sglang.srt.managers.scheduler import Scheduler, get_tokenizer

        give_a_tokenizer(Scheduler, get_tokenizer)
        give_a_backend(grammar_manager.GrammarManager, create_grammar_backend)
        wait_for_reasoning(grammar_manager.GrammarManager, BaseGrammarObject, reasoner_of(ReasonerGrammarObject))


def let_pass(sampling_params: Any) -> None:
    """`sampling_params`: SGLang's module. A stop pattern is looked for in the newest TAIL_TOKENS tokens: SGLang would
    read the whole answer anew after each token where a pattern has no longest match."""

    @instead_of(sampling_params)
    def raise_if_tokenizer_required(*_args: Any, **_kwargs: Any) -> None:
        """The schedulers have one."""

    @instead_of(sampling_params.SamplingParams)
    def normalize(self: Any, tokenizer: Any) -> None:
        normalize.real(self, tokenizer)
        self.stop_regex_max_len = min(self.stop_regex_max_len, TAIL_TOKENS)


def give_a_tokenizer(scheduler_class: Any, load: Any) -> None:
    @instead_of(scheduler_class)
    def init_tokenizer(self: Any) -> None:
        init_tokenizer.real(self)
        if self.tokenizer is None and getattr(self, "is_generation", True):  # vectors need none
            self.tokenizer = _loaded(self.server_args, load)


def _loaded(args: Any, load: Any) -> Any:
    folder = args.tokenizer_path or args.model_path
    try:
        return load(folder, trust_remote_code=args.trust_remote_code)
    except Exception as error:  # noqa: BLE001 - whatever it is: the engine serves without what a tokenizer is for
        log.warning("%s: its tokenizer cannot be loaded, so there are no grammars and no stop_regex: %s", folder, error)
        return NoTokenizer()


def give_a_backend(manager_class: Any, create: Any) -> None:
    @instead_of(manager_class)
    def __init__(self: Any, scheduler: Any, *args: Any, **kwargs: Any) -> None:
        __init__.real(self, scheduler, *args, **kwargs)
        if self.grammar_backend is None and not isinstance(scheduler.tokenizer, NoTokenizer):
            model = scheduler.model_config
            self.grammar_backend = create(
                scheduler.server_args, scheduler.tokenizer, model.vocab_size, model.hf_eos_token_id
            )

    @instead_of(manager_class)
    def process_req_with_grammar(self: Any, req: Any) -> Any:
        if self.grammar_backend is not None and _is_full(self.grammar_backend):
            self.grammar_backend.reset()
        if req.sampling_params.stop_regex_strs and isinstance(self.scheduler.tokenizer, NoTokenizer):
            req.sampling_params.stop_regex_strs = []
            req.set_finish_with_abort("stop_regex needs a tokenizer, and this model has none that the engine can load")
        return process_req_with_grammar.real(self, req)


def _is_full(backend: Any) -> bool:
    compiler = getattr(backend, "grammar_compiler", None)  # xgrammar's; the others tell no size
    size_of = getattr(compiler, "get_cache_size_bytes", None)
    return len(backend.cache) >= GRAMMARS_MAX or (size_of is not None and size_of() >= GRAMMARS_BYTES_MAX)


def wait_for_reasoning(manager_class: Any, grammar_class: type, reasoner: Reasoner) -> None:
    """A grammar comes from SGLang's cache at once, or later, when it has been compiled: both are held back here, until
    the ids that the request names have come."""

    def hold_back(req: Any) -> None:
        end_ids = end_ids_of(req.sampling_params.custom_params)
        # Else it is not there yet (a Future), or the request was refused (None).
        if end_ids and isinstance(req.grammar, grammar_class):
            try:
                req.grammar = reasoner(req.grammar, end_ids)
            except ValueError as error:
                req.set_finish_with_abort(str(error))

    @instead_of(manager_class)
    def process_req_with_grammar(self: Any, req: Any) -> Any:
        is_queued = process_req_with_grammar.real(self, req)
        hold_back(req)
        return is_queued

    @instead_of(manager_class)
    def get_ready_grammar_requests(self: Any) -> Any:
        ready = get_ready_grammar_requests.real(self)
        for req in ready:
            hold_back(req)
        return ready


def reasoner_of(reasoner_class: Any) -> Reasoner:
    """`reasoner_class`: SGLang's ReasonerGrammarObject. Until 0.5.16 it knows one id that ends the reasoning."""
    takes_one = "think_end_id" in inspect.signature(reasoner_class).parameters

    def reasoner(grammar: Any, end_ids: list[int]) -> Any:
        """Raises ValueError."""
        if takes_one and len(end_ids) != 1:
            what = f"the mark that ends this model's reasoning has {len(end_ids)} tokens"
            raise ValueError(f"Grammar-based generation after reasoning is not supported by this SGLang: {what}")
        held = reasoner_class(grammar, end_ids[0] if takes_one else end_ids)
        held.maybe_init_reasoning(True)
        return held

    return reasoner
