"""`models` in the YAML: each model is what it would be alone, under its name; mistakes are told with their paths."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from disagg.cli.check import look_at, problems_of
from disagg.config.json_schema import json_schema
from disagg.errors import ConfigError, Problem
from disagg.load import load_config, parse_config, shipped_text
from disagg.planning.assess import assess
from disagg.planning.cluster_shape import parse_shape
from disagg.planning.placement import place
from disagg.planning.plan import Plan, resolve, resolve_parts, shown_arguments, together
from disagg.planning.report import render_all, to_json
from disagg.preflight.api import check, subject_of
from disagg.replay.deployment import pools_of

CHAT = {"path": "smollm2", "prefill": {"replicas": 2}, "decode": {}}
SMALL = {"path": "tiny-qwen3", "aggregated": [{}, {"engine": {"max_running_requests": 4}}]}


def text(*, device: str = "cpu", chat: Any = CHAT, small: Any = SMALL, **more: Any) -> str:
    return yaml.safe_dump({"version": 1, "device": device, "models": {"chat": chat, "small": small}, **more})


def plans(yaml_text: str, device: Any = "cpu", sets: Sequence[str] = ()) -> tuple[Plan, ...]:
    return resolve_parts(parse_config(yaml_text, sets), device)


def problems_in(yaml_text: str, sets: Sequence[str] = ()) -> list[Problem]:
    with pytest.raises(ConfigError) as raised:
        parse_config(yaml_text, sets)
    return list(raised.value.problems)


def test_each_model_has_engines_of_its_own_and_no_two_have_one_name() -> None:
    chat, small = plans(text())
    assert [engine.id for engine in chat.engines] == ["chat.prefill-0", "chat.prefill-1", "chat.decode-0"]
    assert [engine.id for engine in small.engines] == ["small.aggregated-0", "small.aggregated-1"]
    assert {engine.group for engine in chat.engines} == {"chat"}
    assert (chat.model.path, chat.model.name) == ("smollm2", "chat")
    assert (small.model.path, small.model.name) == ("tiny-qwen3", "small")
    assert chat.beside == small.engines
    assert small.beside == chat.engines
    every = together((chat, small), parse_config(text()))
    assert every.engines == chat.engines + small.engines


def test_one_of_several_is_what_it_would_be_alone() -> None:
    alone = {"version": 1, "device": "cpu", "model": {"path": "smollm2", "name": "chat"}, "prefill": {"replicas": 2}}
    short = resolve(parse_config(yaml.safe_dump({**alone, "decode": {}})), "cpu")
    (long,) = resolve_parts(
        parse_config(yaml.safe_dump({"version": 1, "device": "cpu", "models": {"chat": CHAT}})), "cpu"
    )
    assert long.model == short.model
    for one, other in zip(short.engines, long.engines, strict=True):
        assert shown_arguments(short, one) == shown_arguments(long, other)
    assert [engine.id for engine in short.engines] == ["prefill-0", "prefill-1", "decode-0"], "as ever"


def test_clients_may_say_another_name() -> None:
    chat, small = plans(text(chat=CHAT | {"name": "org/Chat-7B:v2"}))
    assert (chat.model.name, chat.engines[0].id, small.model.name) == ("org/Chat-7B:v2", "chat.prefill-0", "small")


MISTAKES: dict[str, tuple[dict[str, Any], str, str]] = {
    "both forms": ({"model": {"path": "m"}}, "model", "is of a deployment of one model"),
    "pools of the short form": ({"prefill": {}}, "prefill", "is of a deployment of one model"),
    "no engines": ({"small": {"path": "m"}}, "models.small", "has no engines"),
    "no path": ({"small": {"aggregated": {}}}, "models.small.path", "is missing"),
    "one side": ({"small": {"path": "m", "prefill": {}}}, "models.small.decode", "is missing"),
    "unknown key": ({"small": SMALL | {"decod": {}}}, "models.small.decod", "is not a known key"),
    "bad value": ({"chat": CHAT | {"decode": {"replicas": 0}}}, "models.chat.decode.replicas", "must be at least 1"),
    "in a list": (
        {"small": SMALL | {"aggregated": [{}, {"replicas": 0}]}},
        "models.small.aggregated.1.replicas",
        "must be at least 1",
    ),
    "an argument": (
        {"chat": CHAT | {"decode": {"engine": {"max_runing_requests": 1}}}},
        "models.chat.decode.engine.max_runing_requests",
        "has no argument",
    ),
    "an argument of ours": (
        {"chat": CHAT | {"decode": {"engine": {"host": "x"}}}},
        "models.chat.decode.engine.host",
        "is not set here",
    ),
    "one name": ({"small": SMALL | {"name": "chat"}}, "models.small.name", "is what clients call models.chat too"),
    "one name of two pools": (
        {"chat": CHAT | {"decode": {"name": "p"}}, "small": {"path": "m", "aggregated": {"name": "p"}}},
        "models.small.aggregated.name",
        "is the name of a pool of models.chat too",
    ),
    "an adapter as a model": (
        {"small": SMALL | {"lora": {"max_lora_rank": 8, "target_modules": ["q_proj"], "adapters": {"chat": "/a"}}}},
        "models.small.lora.adapters.chat",
        "is the name of the model models.chat",
    ),
    "two pools": (
        {"chat": CHAT | {"decode": {"engine": {"page_size": 16}}}},
        "models.chat.decode.engine.page_size",
        "but models.chat.prefill.engine.page_size is",
    ),
    "no mapping": ({"small": 7}, "models.small", "must be a mapping"),
}


@pytest.mark.parametrize(("said", "path", "what"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_told_once_with_its_path(said: dict[str, Any], path: str, what: str) -> None:
    problem, *others = problems_in(text(**said))
    assert (problem.path, others) == (path, [])
    assert what in problem.what


@pytest.mark.parametrize("models", ["", "{}", "7", "[]"])
def test_models_have_to_be_models(models: str) -> None:
    (problem,) = {each.path for each in problems_in(f"version: 1\nmodels: {models}")}
    assert problem == "models"


@pytest.mark.parametrize("key", ["a.b", "a/b", "", "-a", "a" * 64])
def test_what_engines_are_called_after_is_short_and_plain(key: str) -> None:
    (problem,) = problems_in(yaml.safe_dump({"version": 1, "models": {key: SMALL}}))
    assert "must be letters, digits, - and _" in problem.what


def test_a_name_that_is_said_twice_is_refused() -> None:
    (problem,) = problems_in("version: 1\nmodels:\n  a: {path: m, aggregated: {}}\n  a: {path: n, aggregated: {}}\n")
    assert "a" in str(problem)
    assert "twice" in str(problem)


def test_sets_reach_one_model() -> None:
    chat, small = plans(
        text(),
        sets=[
            "models.chat.prefill.replicas=1",
            "models.small.aggregated.1.engine.page_size=32",
            "models.small.path=other",
            "models.chat.decode.engine.max-running-requests=16",
        ],
    )
    assert [engine.id for engine in chat.engines] == ["chat.prefill-0", "chat.decode-0"]
    assert chat.engines[1].engine == {"max_running_requests": 16}
    assert [engine.engine.get("page_size") for engine in small.engines] == [None, 32]
    assert (small.model.path, small.model.name) == ("other", "small")
    (problem,) = problems_in(text(), ["models.small.aggregated.2.replicas=1"])
    assert "aggregated has 2 pools" in problem.what


def test_what_extends_says_the_pools_of_one_model_anew(tmp_path: Path) -> None:
    (tmp_path / "below.yaml").write_text(text())
    above = {"extends": "below.yaml", "models": {"small": {"aggregated": {}}, "third": SMALL}}
    (tmp_path / "above.yaml").write_text(yaml.safe_dump({"version": 1, **above}))
    chat, small, third = resolve_parts(load_config(tmp_path / "above.yaml"), "cpu")
    assert (len(chat.engines), len(small.engines), len(third.engines)) == (3, 1, 2)
    assert small.model.path == "tiny-qwen3"


def test_files_that_a_model_names_lie_beside_the_yaml_and_go_with_it(tmp_path: Path) -> None:
    (tmp_path / "t.jinja").write_text("{{ messages }}")
    lora = {"max_lora_rank": 8, "target_modules": ["q_proj"], "adapters": {"sql": "adapters/sql"}}
    (tmp_path / "own.yaml").write_text(text(chat=CHAT | {"chat_template": "t.jinja"}, small=SMALL | {"lora": lora}))
    chat, small = load_config(tmp_path / "own.yaml").parts()
    assert chat.model.chat_template == "{{ messages }}"
    assert small.model.lora is not None
    assert small.model.lora.adapters["sql"].path == f"{tmp_path}/adapters/sql"
    assert (chat.model.lora, small.model.chat_template) == (None, None)
    again, sets = shipped_text(tmp_path / "own.yaml")
    assert [part.model for part in parse_config(again, sets).parts()] == [chat.model, small.model]
    (problem,) = problems_in(text(chat=CHAT | {"chat_template": "absent.jinja"}))
    assert problem.path == "models.chat.chat_template"


def test_a_page_size_of_all_is_that_of_each_pair() -> None:
    chat, small = plans(text(transfer={"page_size": 32}))
    assert {engine.engine.get("page_size") for engine in chat.engines} == {32}
    assert {engine.engine.get("page_size") for engine in small.engines} == {None}


def test_no_model_at_all_is_told_as_ever() -> None:
    (problem,) = [each for each in problems_in("version: 1\naggregated: {}") if each.path == "model"]
    assert (problem.what, problem.would_do) == ("is missing", "add `model: …`")


NODE = "nodes: [{name: h, cpus: 64, gpus: 3, gpu_kind: h200}]"


def test_models_share_the_nodes_and_who_finds_no_room_is_told_with_his_path() -> None:
    shape = parse_shape(NODE)
    chat, small = plans(text(device="cuda", small={"path": "m", "aggregated": {"engine": {"tp_size": 2}}}), "cuda")
    placed = [place(plan, shape) for plan in (chat, small)]
    members = [(*each.members, *each.beside) for each, _ in placed]
    assert sorted(members[0], key=str) == sorted(members[1], key=str), "whoever asks"
    gpus = [gpu for member in members[0] for gpu in member.gpus]
    assert sorted(gpus) == [0, 1, 2], "nobody shares one"
    problems = [problem for plan in (chat, small) for problem in check(plan, shape) if "room" in problem.what]
    assert [problem.path for problem in problems] == ["models.chat.prefill", "models.chat.decode"]
    subject = subject_of(small, shape, None)
    assert {member.engine for member in subject.members} == {"small.aggregated-0"}
    assert {member.engine for member in subject.beside} == {"chat.prefill-0"}


def test_engines_of_two_models_on_one_gpu_are_told_how_to_share_it() -> None:
    half = {"resources": {"gpus": 0.5}}
    models = {"chat": {"path": "m", "aggregated": half}, "small": {"path": "n", "aggregated": half}}
    plan = plans(text(device="cuda", **models), "cuda")[1]
    one = parse_shape("nodes: [{name: h, cpus: 64, gpus: 1, gpu_kind: h200}]")
    told = {problem.path: problem.what for problem in check(plan, one)}
    shared = told["models.small.aggregated.engine.max_total_tokens"]
    assert "small.aggregated-0 and chat.aggregated-0 share a GPU" in shared


def test_a_problem_of_a_models_files_names_the_model(tmp_path: Path) -> None:
    broken = tmp_path / "model"
    broken.mkdir()
    (broken / "config.json").write_text("{}")
    (broken / "model.safetensors.index.json").write_text('{"weight_map": {"a": "not-there.safetensors"}}')
    file = tmp_path / "own.yaml"
    file.write_text(text(small={"path": str(broken), "aggregated": {}}))
    seen = look_at(str(file), ())
    assert [problem.path for each in seen for problem in problems_of(each)] == ["models.small.path"]


def test_the_report_has_all_models() -> None:
    seen = [assess(plan) for plan in plans(text())]
    shown, said = render_all(seen, ["beware"]), json.loads(to_json(seen, (), ["beware"]))
    for engine in ("chat.prefill-0", "chat.decode-0", "small.aggregated-1"):
        assert f"\n{engine}  (" in shown
    assert shown.count("beware") == 1
    assert sorted(said) == ["models", "problems", "warnings"]
    assert said["models"]["small"]["model"]["path"] == "tiny-qwen3"
    assert [engine["id"] for engine in said["models"]["chat"]["engines"]][-1] == "chat.decode-0"


def test_a_trace_is_replayed_on_one_model() -> None:
    simulated = {"path": "smollm2", "aggregated": {}}
    with pytest.raises(ConfigError, match="has 2 models"):
        pools_of(parse_config(text(device="simulated", chat=simulated, small=simulated)))


def test_the_schema_of_configurations_knows_them() -> None:
    schema = json_schema()
    fields = schema["$defs"]["ModelWithEngines"]["properties"]
    assert fields.keys() >= {"path", "chat_template", "lora", "prefill", "decode", "aggregated", "embedding"}
    assert all(about["description"] for about in fields.values())
    assert {"required": ["version", "models"]}.items() <= schema["anyOf"][-1].items()
