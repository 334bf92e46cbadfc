"""Schedulers that take token ids get a tokenizer and a grammar backend; what cannot be had is refused, not ignored."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from disagg.host_spec import LIFE_VARIABLE, OFF_VARIABLE
from disagg.sglang.plugins import grammar
from disagg.sglang.plugins.grammar import GRAMMARS_MAX, NoTokenizer, give_a_backend, give_a_tokenizer, let_pass
from disagg.stop_patterns import TAIL_TOKENS

ARGUMENTS = SimpleNamespace(tokenizer_path=None, model_path="/m", trust_remote_code=True)


class Backend:
    def __init__(self) -> None:
        self.cache: dict[Any, Any] = {}
        self.resets = 0

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
