"""Schedulers that take token ids get a tokenizer and a grammar backend; what cannot be had is refused, not ignored."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from disagg.host_spec import LIFE_VARIABLE, OFF_VARIABLE
from disagg.reasoning_end import after_reasoning
from disagg.sglang.plugins import grammar
from disagg.sglang.plugins.grammar import (
    GRAMMARS_BYTES_MAX,
    GRAMMARS_MAX,
    NoTokenizer,
    give_a_backend,
    give_a_tokenizer,
    let_pass,
    reasoner_of,
    wait_for_reasoning,
)
from disagg.stop_patterns import TAIL_TOKENS

ARGUMENTS = SimpleNamespace(tokenizer_path=None, model_path="/m", trust_remote_code=True)


class Backend:
    def __init__(self) -> None:
        self.cache: dict[Any, Any] = {}
        self.resets = 0
        self.grammar_compiler: Any = None

    def reset(self) -> None:
        self.cache.clear()
        self.resets += 1


class Request:
    def __init__(self, *stop_regex: str) -> None:
        self.sampling_params = SimpleNamespace(stop_regex_strs=list(stop_regex))
        self.aborted = ""

    def set_finish_with_abort(self, why: str) -> None:
        self.aborted = why


def scheduler(load: Any, backend: Any = None) -> Any:
    """As SGLang makes one under skip_tokenizer_init, or with a backend of its own."""

    class Manager:
        def __init__(self, scheduler: Any) -> None:
            self.scheduler, self.grammar_backend = scheduler, backend

        def process_req_with_grammar(self, req: Any) -> bool:
            return False

    class Scheduler:
        server_args = ARGUMENTS
        model_config = SimpleNamespace(vocab_size=9, hf_eos_token_id={2})

        def __init__(self) -> None:
            self.init_tokenizer()
            self.manager = Manager(self)

        def init_tokenizer(self) -> None:
            self.tokenizer = None

    for _ in range(2):  # in a fork, again
        give_a_tokenizer(Scheduler, load)
        give_a_backend(Manager, lambda *given: SimpleNamespace(given=given, cache={}))
    return Scheduler()


def test_a_scheduler_loads_the_models_tokenizer_and_makes_the_backend_of_its_arguments() -> None:
    loaded = []
    made = scheduler(lambda folder, **more: loaded.append((folder, more)) or "tokenizer")
    assert loaded == [("/m", {"trust_remote_code": True})]
    assert made.tokenizer == "tokenizer"
    assert made.manager.grammar_backend.given == (ARGUMENTS, "tokenizer", 9, {2})


def test_a_backend_that_sglang_made_is_left_alone() -> None:
    backend = Backend()
    assert scheduler(lambda *_, **__: "tokenizer", backend).manager.grammar_backend is backend


def test_a_tokenizer_that_cannot_be_loaded_costs_grammars_and_stop_patterns_and_nothing_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def load(*_: Any, **__: Any) -> Any:
        raise ValueError("no such class")

    made = scheduler(load)
    assert (
        "/m: its tokenizer cannot be loaded, so there are no grammars and no stop_regex: no such class" in caplog.text
    )
    assert isinstance(made.tokenizer, NoTokenizer)
    assert (made.tokenizer.eos_token_id, made.tokenizer.additional_stop_token_ids) == (None, None)  # SGLang asks
    assert made.manager.grammar_backend is None  # SGLang refuses each grammar by itself
    plain, with_pattern = Request(), Request("a|b")
    for request in (plain, with_pattern):
        made.manager.process_req_with_grammar(request)
    assert plain.aborted == ""
    assert "stop_regex needs a tokenizer" in with_pattern.aborted
    assert with_pattern.sampling_params.stop_regex_strs == []  # it goes through one more step


def test_compiled_grammars_do_not_fill_the_memory() -> None:
    backend = Backend()
    manager = scheduler(lambda *_, **__: "tokenizer", backend).manager
    for number in range(3 * GRAMMARS_MAX):
        manager.process_req_with_grammar(Request())
        backend.cache[number] = "compiled"
        assert len(backend.cache) <= GRAMMARS_MAX
    assert backend.resets == 2


def test_nor_do_a_few_large_ones() -> None:
    backend = Backend()
    backend.grammar_compiler = SimpleNamespace(
        get_cache_size_bytes=lambda: 10 + GRAMMARS_BYTES_MAX // 2 * len(backend.cache)
    )
    manager = scheduler(lambda *_, **__: "tokenizer", backend).manager
    for number in range(5):
        manager.process_req_with_grammar(Request())
        backend.cache[number] = "compiled"
        assert len(backend.cache) <= 2
    assert backend.resets == 2


class Grammar:
    """Of SGLang's kind."""


class Held(Grammar):
    def __init__(self, grammar: Any, think_end_ids: list[int]) -> None:
        self.grammar, self.end_ids, self.is_reasoning = grammar, think_end_ids, False

    def maybe_init_reasoning(self, reasoning: bool) -> None:
        self.is_reasoning = reasoning


class HeldByOne(Held):
    """0.5.16's."""

    def __init__(self, grammar: Any, think_end_id: int) -> None:
        super().__init__(grammar, [think_end_id])


def constrained(end_ids: list[int], found: Any) -> Any:
    """A request, and what SGLang finds for its grammar."""
    params = SimpleNamespace(custom_params=after_reasoning(end_ids)["custom_params"] if end_ids else None)
    request = SimpleNamespace(sampling_params=params, grammar=None, found=found, aborted="")
    request.set_finish_with_abort = lambda why: vars(request).update(aborted=why, grammar=None)
    return request


def manager_of(held: type) -> Any:
    class Manager:
        def __init__(self) -> None:
            self.queue: list[Any] = []

        def process_req_with_grammar(self, req: Any) -> bool:
            """At once from the cache; else it is queued with a Future."""
            is_cached = isinstance(req.found, Grammar) or req.found is None
            req.grammar = req.found if is_cached else "a Future"
            self.queue += [] if is_cached else [req]
            return not is_cached

        def get_ready_grammar_requests(self) -> list[Any]:
            for req in self.queue:
                req.grammar = req.found[0]
            return self.queue

    wait_for_reasoning(Manager, Grammar, reasoner_of(held))
    return Manager()


@pytest.mark.parametrize("held", [Held, HeldByOne])
@pytest.mark.parametrize("is_cached", [False, True])
def test_a_grammar_waits_for_the_end_of_reasoning_that_its_request_names(held: type, is_cached: bool) -> None:
    manager, grammar = manager_of(held), Grammar()
    found = grammar if is_cached else [grammar]
    waits, holds = constrained([7], found), constrained([], found)
    for request in (waits, holds):
        assert manager.process_req_with_grammar(request) is not is_cached
    manager.get_ready_grammar_requests()
    assert (waits.grammar.grammar, waits.grammar.end_ids, waits.grammar.is_reasoning) == (grammar, [7], True)
    assert holds.grammar is grammar


def test_a_request_that_was_refused_has_no_grammar_to_hold_back() -> None:
    request = constrained([7], None)
    manager_of(Held).process_req_with_grammar(request)
    assert request.grammar is None


def test_a_mark_of_two_tokens_is_refused_where_sglang_knows_one() -> None:
    request = constrained([7, 8], Grammar())
    manager_of(HeldByOne).process_req_with_grammar(request)
    assert request.aborted.startswith("Grammar-based generation after reasoning is not supported")
    request = constrained([7, 8], Grammar())
    manager_of(Held).process_req_with_grammar(request)
    assert request.grammar.end_ids == [7, 8]


def test_the_host_lets_them_pass_and_bounds_what_is_searched() -> None:
    class SamplingParams:
        def __init__(self, longest: int) -> None:
            self.longest = longest

        def normalize(self, tokenizer: Any) -> None:
            module.raise_if_tokenizer_required(tokenizer, [], ["a"], 5)
            self.stop_regex_max_len = self.longest

    def raises(*_: Any) -> None:
        raise ValueError("unavailable when skip_tokenizer_init=True")

    module: Any = SimpleNamespace(SamplingParams=SamplingParams, raise_if_tokenizer_required=raises)
    let_pass(module)
    for longest, searched in ((2**30, TAIL_TOKENS), (5, 5)):
        params = SamplingParams(longest)
        params.normalize(None)
        assert params.stop_regex_max_len == searched


@pytest.mark.parametrize("environment", [{}, {LIFE_VARIABLE: "decode-0#1", OFF_VARIABLE: "seeds,grammar"}])
def test_it_is_switched_off_where_sglang_does_not_fit_and_acts_in_engines_of_ours_alone(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(LIFE_VARIABLE, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(grammar, "let_pass", lambda *_: pytest.fail("it acts"))
    grammar.activate()
