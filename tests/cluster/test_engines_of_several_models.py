"""What the driver knows of several models: each engine gets its model's files, its adapters and nobody else's peers."""

from __future__ import annotations

from pathlib import Path

import pytest
from scene import SETTING

from disagg.adapters import Adapter
from disagg.cluster.adapters import Adapters, AdaptersOfModels
from disagg.cluster.engine_node import Ground
from disagg.cluster.preparing import shared_of
from disagg.cluster.runtime import Runtime
from disagg.cluster.setting import OfModel, Setting, host_spec
from disagg.cluster.specs import frontend_spec, model_spec
from disagg.load import parse_config
from disagg.planning.plan import resolve_parts
from disagg.registry.keys import Keys
from disagg.registry.memory import MemoryRegistry

YAML = """
version: 1
registry: {kind: file, path: /r}
models:
  chat: {path: a, name: org/Chat, tool_call_parser: hermes, prefill: {}, decode: {}}
  small: {path: b, tokenization: engine, embedding: {}, chat_template_kwargs: {thinking: true}}
"""


def test_a_host_gets_the_folder_and_the_text_side_of_its_own_model() -> None:
    chat, small = resolve_parts(parse_config(YAML), "cpu")
    of_models = {"chat": OfModel("/m/a", None, 64), "small": OfModel("/m/b", None, 0)}
    setting = Setting("d", "cpu", "", "00", chat.deadlines, [], "", of_models=of_models)
    ground = Ground("127.0.0.1", 20_000, fork=False)
    prefill, decode, embedding = (
        host_spec(engine, setting, 3, ground)[0] for engine in (*chat.engines, *small.engines)
    )
    assert [spec.arguments["model_path"] for spec in (prefill, decode, embedding)] == ["/m/a", "/m/a", "/m/b"]
    assert (prefill.life, embedding.life) == ("chat.prefill-0#3", "small.embedding-0#3")
    assert (prefill.block_tokens, embedding.block_tokens) == (64, 0)
    assert prefill.log_path.endswith("/chat.prefill-0.log")
    assert SETTING.of("") == OfModel(SETTING.model_path, SETTING.text, SETTING.block_tokens), "of the only model"


def test_a_frontend_is_told_of_all_models() -> None:
    deployment = parse_config(YAML)
    plans = resolve_parts(deployment, "cpu")
    models = [model_spec(plan, Path("/m")) for plan in plans]
    spec = frontend_spec(plans[0], models, shared_of(deployment))
    chat, small = spec.models
    assert (chat.name, chat.group, chat.tool_call_parser, chat.generates, chat.embeds) == (
        "org/Chat",
        "chat",
        "hermes",
        True,
        False,
    )
    assert (small.name, small.tokenization, small.generates, small.embeds) == ("small", "engine", False, True)
    assert small.overrides.chat_template_kwargs == {"thinking": True}
    assert spec.shared is not None
    assert spec.shared.keys == Keys("disagg", "disagg")


async def test_adapters_of_one_name_are_two_where_models_are() -> None:
    registry, runtime = MemoryRegistry(), Runtime()
    chat = Adapters(registry, runtime, "org/Chat", [Adapter("sql", "/a")], 1.0, "chat")
    small = Adapters(registry, runtime, "small", [], 1.0, "small")
    none = Adapters(registry, runtime, None, [], 1.0, "x")
    every = AdaptersOfModels({"chat": chat, "small": small, "x": none}, ["org/Chat", "small", "x"])
    await every.begin()
    assert await every.load("small:sql", "/b", False) is None
    assert {key: each.path for key, each in registry.adapters.items()} == {"chat:sql": "/a", "small:sql": "/b"}
    assert "is here already, from /a" in (await every.load("chat:sql", "/c", False) or "")
    assert "'small' is that of a model here" in (await every.load("chat:small", "/c", False) or "")
    assert "takes no adapters" in (await every.load("x:sql", "/c", False) or "")
    for key in ("sql", "nobody:sql"):
        assert await every.load(key, "/c", False) == await every.unload(key) == "there is no such model here"
    assert await every.unload("chat:sql") is None
    assert list(registry.adapters) == ["small:sql"]
    every.leave("small.aggregated-0#1")
    await every.stop()


async def test_adapters_come_and_go_with_their_model() -> None:
    registry, runtime = MemoryRegistry(), Runtime()
    every = AdaptersOfModels({"chat": Adapters(registry, runtime, "org/Chat", [], 1.0, "chat")}, ["org/Chat"])
    asked: list[float] = []

    async def all_have_seen(limit_s: float) -> bool:
        asked.append(limit_s)
        return True

    every.seen_by(all_have_seen)
    new = Adapters(registry, runtime, "org/New", [Adapter("sql", "/a")], 1.0, "new")
    every.add("new", "org/New", new)
    assert not registry.adapters, "where a controller takes over it is not the YAML that says what there is"
    await new.begin()
    assert await every.load("new:fr", "/b", False) is None
    assert asked, "as of all others"
    assert list(registry.adapters) == ["new:sql", "new:fr"]
    assert "'org/New' is that of a model here" in (await every.load("chat:org/New", "/c", False) or "")
    await every.remove("new")
    assert not registry.adapters
    assert await every.load("new:fr", "/b", False) == "there is no such model here"
    assert await every.load("chat:org/New", "/c", False) is None, "the name is free"
    await every.remove("new")  # again, as a change is that was taken back


@pytest.mark.parametrize("key", ["sql", "a:sql"])
async def test_of_the_only_model_a_name_is_a_name(key: str) -> None:
    registry = MemoryRegistry()
    every = AdaptersOfModels({"": Adapters(registry, Runtime(), "tiny", [], 1.0)})
    said = await every.load(key, "/b", False)
    assert (said is None) is (key == "sql")
    assert list(registry.adapters) == (["sql"] if key == "sql" else [])
