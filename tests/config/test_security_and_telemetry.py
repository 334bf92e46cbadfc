"""Keys are taken, and shown nowhere; the log level reaches the engines."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from disagg.config.frontend import FrontendSection, page_origins
from disagg.config.tls import TlsSection
from disagg.config.traces import HEADERS_VARIABLE
from disagg.errors import ConfigError
from disagg.load import parse_config, secret_variables
from disagg.planning.plan import resolve, shown_environment
from disagg.preflight.api import check_warnings

PAIR = "version: 1\ndevice: cpu\nmodel: {path: m}\nprefill: {engine: {log_level: debug}}\ndecode: {}\n"
KEY = "a-secret-key-0123456789"


def test_a_key_is_shown_nowhere() -> None:
    deployment = parse_config(PAIR + f"security: {{api_keys: [{KEY}]}}")
    assert [each.key.get_secret_value() for each in deployment.security.api_keys] == [KEY]
    assert KEY not in repr(deployment)
    assert KEY not in str(deployment.model_dump())


@pytest.mark.parametrize("security", ["{api_keys: [too-short-a]}", "{api_keys: too-short-a}", "{api_key: too-short-a}"])
def test_nor_is_one_in_a_refusal(security: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_config(PAIR + f"security: {security}")
    assert any(problem.path.startswith("security.api_key") for problem in refused.value.problems)
    assert "too-short-a" not in "".join(map(str, refused.value.problems))


def test_a_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", KEY)
    deployment = parse_config(PAIR + 'security: {api_keys: ["${env:SOME_KEY}"]}')
    assert deployment.security.api_keys[0].key.get_secret_value() == KEY


def test_engines_are_the_same_whether_the_usual_log_level_is_said_or_not() -> None:
    """Else they would start again for a difference that is none."""
    said, unsaid = (resolve(parse_config(PAIR + more), "cpu") for more in ("telemetry: {log_level: info}", ""))
    assert said.engines == unsaid.engines


def test_the_log_level_is_that_of_all_pools_that_say_none() -> None:
    plan = resolve(parse_config(PAIR + "telemetry: {log_level: warning}"), "cpu")
    assert [engine.engine["log_level"] for engine in plan.engines] == ["debug", "warning"]


ADMIN = "an-admin-key-0123456789"


def test_admin_keys_are_shown_nowhere() -> None:
    deployment = parse_config(PAIR + f"security: {{admin_keys: [{ADMIN}]}}")
    assert [key.get_secret_value() for key in deployment.security.admin_keys] == [ADMIN]
    assert ADMIN not in repr(deployment)
    assert ADMIN not in str(deployment.model_dump())


@pytest.mark.parametrize(
    ("security", "said"),
    [
        ('{api_keys: ["ends-with-a-line-end-0123\\n"]}', "has a blank, a line end or a letter beyond ASCII"),
        ('{admin_keys: ["has a blank 0123456789"]}', "has a blank"),
        ('{api_keys: ["schlüssel-0123456789"]}', "a letter beyond ASCII"),
        (f"{{api_keys: [{KEY}], admin_keys: [{KEY}]}}", "a key in common"),
        ("{admin_keys: [short]}", "16"),
    ],
)
def test_keys_that_could_not_work_are_refused_unseen(security: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_config(PAIR + f"security: {security}")
    text = "".join(map(str, refused.value.problems))
    assert said in text
    assert "0123" not in text


@pytest.mark.parametrize(
    ("yaml", "origins"),
    [
        ("", ("*",)),
        ("frontend: {host: localhost}", ("*",)),
        ('frontend: {host: "::1"}', ("*",)),
        ("frontend: {host: 0.0.0.0}", ()),
        (f"security: {{api_keys: [{KEY}]}}", ()),
        (f"security: {{admin_keys: [{ADMIN}]}}", ()),
        ("frontend: {host: 0.0.0.0, cors: {origins: ['*']}}", ("*",)),
        ("frontend: {cors: {origins: []}}", ()),
        (
            "frontend: {cors: {origins: ['https://a.example:8443', 'http://[::1]:3000', 'null', 'app://x']}}",
            ("https://a.example:8443", "http://[::1]:3000", "null", "app://x"),
        ),
    ],
)
def test_pages_of_all_origins_may_only_where_this_machine_alone_asks(yaml: str, origins: tuple[str, ...]) -> None:
    deployment = parse_config(PAIR + yaml)
    assert page_origins(deployment.frontend, deployment.security) == origins


@pytest.mark.parametrize(
    ("origin", "would_do"),
    [
        ("https://a.example/", "say https://a.example"),
        ("https://A.example", "say https://a.example"),
        ("https://a.example/v1", "say https://a.example"),
        ("a.example", "as in https://chat.example.org"),
        ("https://*.example", "as in https://chat.example.org"),
        ("", "as in https://chat.example.org"),
    ],
)
def test_an_origin_that_would_never_fit_is_refused(origin: str, would_do: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_config(PAIR + f"frontend: {{cors: {{origins: ['{origin}']}}}}")
    (problem,) = refused.value.problems
    assert problem.path.startswith("frontend.cors.origins")
    assert would_do in str(problem)


@pytest.mark.parametrize(
    ("yaml", "said"),
    [
        ("", None),
        ("frontend: {host: 0.0.0.0}", "there are no keys"),
        (f"frontend: {{host: 0.0.0.0}}\nsecurity: {{api_keys: [{KEY}]}}", "set security.admin_keys"),
        (f"frontend: {{host: 0.0.0.0}}\nsecurity: {{api_keys: [{KEY}], admin_keys: [{ADMIN}]}}", None),
        ("frontend: {host: localhost}", None),
        ("frontend: {host: 0.0.0.0}\nsecurity: {insecure: true}", None),
        ("frontend: {host: 0.0.0.0}\nsecurity: {keys_file: /keys.yaml}", None),
    ],
)
def test_an_open_door_is_told(yaml: str, said: str | None) -> None:
    warnings = [each for each in check_warnings(resolve(parse_config(PAIR + yaml), "cpu")) if "frontend.host" in each]
    assert len(warnings) == (said is not None)
    assert said is None or said in warnings[0]


TRACES = "telemetry: {traces: {endpoint: 'http://collector:4318', headers: {x-key: a-secret-of-a-collector}%s}}"


def test_where_traces_go() -> None:
    assert parse_config(PAIR).telemetry.traces is None
    traces = parse_config(PAIR + TRACES % "").telemetry.traces
    assert traces is not None
    assert (traces.endpoint, traces.sample_ratio) == ("http://collector:4318/v1/traces", 0.01)
    assert "a-secret" not in repr(traces)
    plan = resolve(parse_config(PAIR + TRACES % ""), "cpu")
    assert not any("enable_trace" in engine.engine for engine in plan.engines)


def test_engines_trace_where_they_are_asked_to_and_a_pool_says_otherwise() -> None:
    said = (PAIR + TRACES % ", engines: true").replace("decode: {}", "decode: {engine: {enable_trace: false}}")
    plan = resolve(parse_config(said), "cpu")
    assert [engine.engine["enable_trace"] for engine in plan.engines] == [True, False]
    assert plan.engines[0].engine["otlp_traces_endpoint"] == "http://collector:4318/v1/traces"
    environment = plan.engines[0].environment(device="cpu", deadlines=plan.deadlines)
    assert environment["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"] == "http/protobuf"
    assert environment[HEADERS_VARIABLE] == "x-key=a-secret-of-a-collector"
    assert "a-secret" not in str(shown_environment(plan, plan.engines[0]))
    simulated = (
        "version: 1\ndevice: simulated\nmodel: {path: m}\nprefill: {}\ndecode: {}\n" + TRACES % ", engines: true"
    )
    assert not any(engine.engine for engine in resolve(parse_config(simulated), "simulated").engines)


@pytest.mark.parametrize(
    ("traces", "said"),
    [
        ("{endpoint: collector:4317}", "is no URL of a collector"),
        ("{endpoint: 'http://'}", "is no URL of a collector"),
        ("{endpoint: 'http://me:secret@collector'}", "say it as a header"),
        ("{endpoint: 'http://c', sample_ratio: 2}", "1"),
        ("{endpoint: 'http://c', headers: {'a b': c}}", "is no name of a header"),
        ('{endpoint: "http://c", headers: {a: "b\\nc"}}', "has a line end"),
        ("{}", "endpoint"),
    ],
)
def test_traces_that_could_not_be_sent_are_refused(traces: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_config(PAIR + f"telemetry: {{traces: {traces}}}")
    assert said in " ".join(map(str, refused.value.problems))


def test_whose_names_metrics_have() -> None:
    assert parse_config(PAIR).telemetry.metric_aliases == ()
    assert parse_config(PAIR + "telemetry: {metric_aliases: [sglang, otel]}").telemetry.metric_aliases == (
        "sglang",
        "otel",
    )
    with pytest.raises(ConfigError, match="metric_aliases"):
        parse_config(PAIR + "telemetry: {metric_aliases: [dynamo]}")


OTHER = "another-key-0123456789"
OTHERS = f"key-{hashlib.sha256(OTHER.encode()).hexdigest()[:8]}"


def test_a_key_may_have_a_name_and_limits() -> None:
    said = f"{{api_keys: [{KEY}, {{key: {OTHER}, name: team-a, requests_per_minute: 60, models: [m]}}]}}"
    deployment = parse_config(PAIR + f"security: {said}")
    bare, limited = deployment.security.api_keys
    assert (bare.is_metered, limited.is_metered) == (False, True)
    assert (limited.name, limited.requests_per_minute, limited.models) == ("team-a", 60, ("m",))
    assert OTHER not in repr(deployment) + str(deployment.model_dump(mode="json"))


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (f"[{{key: {KEY}, requests_per_minute: 0}}]", "at least 1"),
        (f"[{{key: {KEY}, name: 'a b'}}]", "letters, digits, dots"),
        (f"[{{key: {KEY}, burst: 5}}]", "is not a known key"),
        ("[{name: a}]", "is missing"),
        (f"[{KEY}, {{key: {KEY}, name: a}}]", "a key twice"),
        (f"[{{key: {KEY}, name: a}}, {{key: {OTHER}, name: a}}]", "two keys of the same name"),
        (f"[{{key: {KEY}, name: {OTHERS}}}, {{key: {OTHER}, concurrent: 5}}]", f"two keys of the same name, {OTHERS}"),
        ("[{key: tiny}]", "api_keys.0.key"),
    ],
)
def test_limits_that_could_not_work_are_refused(keys: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_config(PAIR + f"security: {{api_keys: {keys}}}")
    text = " ".join(map(str, refused.value.problems))
    assert said in text
    assert "0123456789" not in text


def test_tls_makes_the_url_https() -> None:
    frontend = FrontendSection(tls=TlsSection(cert="a.pem", key="a.key"), host="::1", port=1)
    assert frontend.base_url == "https://[::1]:1/v1"
    with pytest.raises(ConfigError, match=r"frontend\.tls\.key"):
        parse_config(PAIR + "frontend: {tls: {cert: a.pem}}")


def test_engines_count_for_themselves_only_where_it_is_asked_for() -> None:
    plan = resolve(parse_config(PAIR), "cpu")
    assert not any("enable_metrics" in engine.engine for engine in plan.engines)
    said = (PAIR + "telemetry: {engine_metrics: true}").replace(
        "decode: {}", "decode: {engine: {enable_metrics: false}}"
    )
    plan = resolve(parse_config(said), "cpu")
    assert [engine.engine["enable_metrics"] for engine in plan.engines] == [True, False]
    simulated = resolve(parse_config(PAIR + "telemetry: {engine_metrics: true}"), "simulated")
    assert not any("enable_metrics" in engine.engine for engine in simulated.engines)


def test_variables_that_secrets_come_from_are_known_by_name(tmp_path: Path) -> None:
    """And no others: `disagg serve` takes them out of the environment that all it starts inherits."""
    base = tmp_path / "base.yaml"
    base.write_text(
        PAIR + 'security: {api_keys: ["${env:BARE}", {key: "${env:TEAM:-a-default-0123456789}", name: a}]}\n'
    )
    file = tmp_path / "file.yaml"
    file.write_text(
        "extends: ./base.yaml\nregistry: {kind: etcd, endpoints: [a:1], user: root, password: '${env:ETCD}'}\n"
        "model: {name: '${env:NAME}'}\n"
    )
    sets = ['security.admin_keys=["${env:ADMIN}"]', "telemetry.traces.headers.x=Bearer ${env:TOKEN}"]
    assert secret_variables(file, sets) == {"BARE", "TEAM", "ETCD", "ADMIN", "TOKEN"}


SECRET = "0f1e2d3c4b5a6978" * 4


def test_a_secret_comes_from_the_environment_and_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_SECRET", SECRET)
    deployment = parse_config(PAIR + 'security: {secret: "${env:SOME_SECRET}"}')
    assert deployment.security.secret is not None
    assert deployment.security.secret.get_secret_value() == SECRET
    assert SECRET not in repr(deployment)
    assert SECRET not in deployment.model_dump_json()


@pytest.mark.parametrize("secret", ["short", SECRET[:63], "a" * 64, "x" * 20 + "correct horse", "''"])
def test_a_secret_that_could_be_guessed_is_refused(secret: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_config(PAIR + f"security: {{secret: {secret}}}")
    (problem,) = raised.value.problems
    assert problem.path == "security.secret"
    assert "openssl rand -hex 32" in str(problem)
    assert secret not in str(problem) or secret == "''"
