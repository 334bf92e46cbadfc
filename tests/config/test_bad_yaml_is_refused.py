"""Each mistake in a YAML is told with its path and what would do, all of them at once."""

import textwrap
import time
from pathlib import Path

import pytest

from disagg.errors import ConfigError, Problem
from disagg.load import load_config, parse_config
from disagg.sglang.owned_arguments import OWNED_ARGUMENTS

MODEL = "version: 1\nmodel: {path: smollm2}\n"
PAIR = MODEL + "prefill: {}\ndecode: {}\n"


def problems_in(text: str) -> tuple[Problem, ...]:
    with pytest.raises(ConfigError) as caught:
        parse_config(textwrap.dedent(text), source="x.yaml")
    return caught.value.problems


# text, the path told, a part of the message
MISTAKES = {
    "empty": ("", "x.yaml", "is empty"),
    "a list": ("- 1", "x.yaml", "is a list"),
    "syntax": (PAIR + "ray: {address: [}", "x.yaml:5:17", "not YAML"),
    "tab": (PAIR + "ray:\n\taddress: auto", "x.yaml:6:1", "not YAML"),
    "two documents": (PAIR + "---\nversion: 1", "x.yaml:5:1", "not YAML"),
    "control character": (PAIR + "ray: '\x01'", "x.yaml", "not YAML"),
    "impossible date": (PAIR + "ray: 2026-13-45", "x.yaml", "not YAML"),
    "python tag": (PAIR + "ray: !!python/object/apply:os.getcwd []", "x.yaml:5:6", "not YAML"),
    "duplicate key": (PAIR + "frontend:\n  port: 1\n  port: 2", "frontend.port", "said twice, in lines 6 and 7"),
    "duplicate role": (PAIR + "decode: {}", "decode", "said twice, in lines 4 and 5"),
    "duplicate in a list": (
        MODEL + "prefill: [{replicas: 1, replicas: 2}]\ndecode: {}",
        "prefill.0.replicas",
        "said twice",
    ),
    "no version": ("model: {path: a}\naggregated: {}", "version", "is missing; add `version: 1`"),
    "later version": (PAIR.replace("version: 1", "version: 2"), "version", "must be 1, is 2"),
    "version as text": (PAIR.replace("version: 1", "version: '1'"), "version", "must be 1, is the text '1'"),
    "no model": ("version: 1\naggregated: {}", "model", "is missing"),
    "no model path": ("version: 1\nmodel: {name: a}\naggregated: {}", "model.path", "is missing"),
    "sampling that overflows": (
        PAIR.replace("decode: {}", "decode: {engine: {preferred_sampling_params: {repetition_penalty: 1.0e-40}}}"),
        "decode.engine.preferred_sampling_params.repetition_penalty",
        "is 1e-40; it must be at least 0.01",
    ),
    "sampling that is no number": (
        PAIR.replace("decode: {}", "decode: {engine: {preferred_sampling_params: {temperature: .nan}}}"),
        "decode.engine.preferred_sampling_params.temperature",
        "is nan, which is no number",
    ),
    "empty model path": ("version: 1\nmodel: {path: ''}\naggregated: {}", "model.path", "must be some text"),
    "model path with a NUL": (
        'version: 1\nmodel: {path: "a/\\0b"}\naggregated: {}',
        "model.path",
        "holds a NUL, which no name can; take it out",
    ),
    "model path of 5000 letters": (
        f"version: 1\nmodel: {{path: {'a' * 5000}}}\naggregated: {{}}",
        "model.path",
        "has 5000 letters, more than",
    ),
    "model path of nobody's": (
        "version: 1\nmodel: {path: ~nosuchuser/x}\naggregated: {}",
        "model.path",
        "begins with ~nosuchuser, and that user is not known here",
    ),
    "revision of a folder": (
        "version: 1\nmodel: {path: /m, revision: main}\naggregated: {}",
        "model.revision",
        "a folder has no revision",
    ),
    "unknown key": (PAIR + "frontned: {}", "frontned", "is not a known key; did you mean frontend?"),
    "unknown key below": (PAIR + "frontend: {prot: 1}", "frontend.prot", "did you mean port?"),
    "unknown key in a pool": (MODEL + "prefill: {replica: 2}\ndecode: {}", "prefill.replica", "mean replicas?"),
    "bodies too long for an engine's host": (
        "version: 1\nmodel: {path: a, tokenization: engine}\nfrontend: {body_limit_mib: 33}\naggregated: {}",
        "frontend.body_limit_mib",
        "is 33, and with model.tokenization: engine a body goes to an engine's host in one piece; say 32 at most",
    ),
    "paced prefill": (
        MODEL + "prefill: {pace_ms: 20}\ndecode: {}",
        "prefill.pace_ms",
        "is of decode engines: it spaces out their steps; leave it out, or say it under decode",
    ),
    "paced on a GPU of its own": (
        MODEL + "device: cuda\nprefill: {}\ndecode: {pace_ms: 20}",
        "decode.pace_ms",
        "is said, but the engine has GPUs of its own, and no prefill engine to leave them to;"
        " leave it out, or say decode.resources.gpus below 1",
    ),
    "pace beyond reading": (MODEL + "prefill: {}\ndecode: {pace_ms: 250}", "decode.pace_ms", "200"),
    "unknown key in resources": (
        MODEL + "prefill: [{}, {resources: {gpu: 1}}]\ndecode: {}",
        "prefill.1.resources.gpu",
        "did you mean gpus?",
    ),
    "more ranks than GPUs in the world": (
        PAIR.replace("prefill: {}", "prefill: {engine: {tp_size: 1000000000000}}"),
        "prefill.engine.tp_size",
        "more than 16384; say fewer",
    ),
    "more ranks than GPUs, in stages": (
        PAIR.replace("prefill: {}", "prefill: {engine: {tp_size: 16384, pp_size: 16384}}"),
        "prefill.engine.tp_size",
        "an engine has 268435456 ranks",
    ),
    "nothing near": (
        PAIR + "frontend: {xyz: 1}",
        "frontend.xyz",
        "here go host, port, count, body_limit_mib,",
    ),
    "key that is no text": (PAIR + "1: 2", "1", "is not text"),
    "device": (PAIR + "device: gpu", "device", "must be 'auto', 'cpu', 'cuda' or 'simulated'"),
    "port as text": (PAIR + "frontend: {port: '8000'}", "frontend.port", "must be a whole number, is the text '8000'"),
    "port out of range": (PAIR + "frontend: {port: 65536}", "frontend.port", "must be at most 65535"),
    "section as a number": (PAIR + "frontend: 3", "frontend", "must be a mapping"),
    "pool as text": (MODEL + "prefill: two\ndecode: {}", "prefill", "a pool or a list of pools"),
    "pool in a list as text": (MODEL + "prefill: [two]\ndecode: {}", "prefill.0", "must be a mapping"),
    "no replicas": (MODEL + "prefill: {replicas: 0}\ndecode: {}", "prefill.replicas", "must be at least 1, is 0"),
    "true for a count": (MODEL + "prefill: {replicas: true}\ndecode: {}", "prefill.replicas", "must be a whole number"),
    "negative cpus": (MODEL + "prefill: {resources: {cpus: -1}}\ndecode: {}", "prefill.resources.cpus", "at least 0"),
    "part above one GPU": (
        MODEL + "prefill: {resources: {gpus: 1.5}}\ndecode: {}",
        "prefill.resources.gpus",
        "say 2",
    ),
    "pool name": (MODEL + "prefill: {name: a/b}\ndecode: {}", "prefill.name", "must be letters"),
    "octal to YAML": (MODEL + "prefill: {env: {A: 010}}\ndecode: {}", "prefill.env.A", "YAML reads 010 as 8; quote"),
    "a shorter number": (MODEL + "prefill: [{env: {A: 1.50}}]\ndecode: {}", "prefill.0.env.A", "reads 1.50 as 1.5"),
    "same pool name": (
        MODEL + "prefill: [{name: a}, {name: b}]\ndecode: {name: a}",
        "decode.name",
        "'a' is the name of prefill.0 too",
    ),
    "ambiguous environment": (MODEL + "prefill: {env: {A: yes}}\ndecode: {}", "prefill.env.A", "quote the text"),
    "our environment": (
        MODEL + "prefill: {env: {CUDA_VISIBLE_DEVICES: 1}}\ndecode: {}",
        "prefill.env",
        "say resources.gpus instead",
    ),
    "our secret": (MODEL + "prefill: {env: {DISAGG_PLANE_SECRET: x}}\ndecode: {}", "prefill.env", "disagg's own"),
    "environment name": (MODEL + "prefill: {env: {A=B: x}}\ndecode: {}", "prefill.env", "no name of an environment"),
    "ray address": (PAIR + "ray: {address: here}", "ray.address", "say auto, local or HOST:PORT"),
    "ray port": (PAIR + "ray: {address: 'head:99999'}", "ray.address", "say auto, local or HOST:PORT"),
    "ray client": (PAIR + "ray: {address: 'ray://head:10001'}", "ray.address", "Ray Client is not supported"),
    "cpus of a foreign cluster": (
        PAIR + "ray: {address: 'head:6379', cpus: 2}",
        "ray.cpus",
        "the cluster at head:6379 has what it has",
    ),
    "deadline of zero": (PAIR + "deadlines: {stop_s: 0}", "deadlines.stop_s", "must be above 0"),
    "no deadline": (PAIR + "deadlines: {next_token_s: .inf}", "deadlines.next_token_s", "must be a finite number"),
    "past SGLang's timeout": (
        PAIR + "deadlines: {first_token_s: 300}",
        "deadlines.first_token_s",
        "must be below 300, is 300; stay below 300: SGLang ends a leg after 300 s by itself",
    ),
    "request shorter than its start": (
        PAIR + "deadlines: {request_s: 60}",
        "deadlines.request_s",
        "is below first_token_s, which is 120",
    ),
    "no engines": (MODEL, "configuration", "has no engines"),
    "empty lists": (MODEL + "prefill: []\ndecode: []", "configuration", "has no engines"),
    "no decode": (MODEL + "prefill: {}", "decode", "is missing"),
    "no prefill": (MODEL + "decode: {}", "prefill", "a decode engine cannot read prompts"),
    "page size differs": (
        MODEL + "prefill: {engine: {page_size: 16}}\ndecode: {engine: {page_size: 32}}",
        "decode.engine.page_size",
        "is 32 but prefill.engine.page_size is 16",
    ),
    "page size on one side": (
        MODEL + "prefill: {engine: {page_size: 16}}\ndecode: {}",
        "decode.engine.page_size",
        "is SGLang's default but prefill.engine.page_size is 16",
    ),
    "KV type differs in one pool": (
        MODEL + "prefill: [{}, {engine: {kv_cache_dtype: fp8_e5m2}}]\ndecode: {}",
        "prefill.1.engine.kv_cache_dtype",
        "is fp8_e5m2 but prefill.0.engine.kv_cache_dtype is SGLang's default",
    ),
    "said in two spellings": (
        MODEL + "prefill: {engine: {stream-interval: 1, stream_interval: 2}}\ndecode: {}",
        "prefill.engine.stream_interval",
        "said 2 times, as stream-interval and stream_interval",
    ),
    "fewer GPUs than ranks": (
        MODEL + "prefill: {resources: {gpus: 1}, engine: {tp_size: 2}}\ndecode: {}",
        "prefill.resources.gpus",
        "is 1, but tp_size 2 * pp_size 1 ranks need a GPU each; say 2",
    ),
    "GPUs on cpu": (
        MODEL + "device: cpu\nprefill: {}\ndecode: {resources: {gpus: 0.5}}",
        "decode.resources.gpus",
        "is 0.5, but the deployment runs on cpu",
    ),
    "no GPU on cuda": (
        MODEL + "device: cuda\nprefill: [{resources: {gpus: 0}}]\ndecode: {}",
        "prefill.0.resources.gpus",
        "is 0, but the deployment runs on cuda",
    ),
    "plain data parallel": (
        MODEL + "prefill: {engine: {dp_size: 2}}\ndecode: {}",
        "prefill.engine.dp_size",
        "without enable_dp_attention",
    ),
    "no ranks": (MODEL + "prefill: {engine: {tp_size: 0}}\ndecode: {}", "prefill.engine.tp_size", "number from 1"),
    "ranks as text": (MODEL + "prefill: {engine: {tp_size: two}}\ndecode: {}", "prefill.engine.tp_size", "is 'two'"),
    "engine as a list": (MODEL + "prefill: {engine: [a]}\ndecode: {}", "prefill.engine", "must be a mapping"),
}
SIMULATED = "version: 1\ndevice: simulated\nmodel: {path: smollm2}\ndecode: {}\n"
MISTAKES |= {
    "simulated unknown": (
        SIMULATED + "prefill: {engine: {sped: 2}}",
        "prefill.engine.sped",
        "the simulated engine has no argument 'sped'; did you mean speed?",
    ),
    "simulated type": (SIMULATED + "prefill: {engine: {speed: fast}}", "prefill.engine.speed", "must be a number"),
    "simulated range": (
        SIMULATED + "prefill: {engine: {requests_max: 0}}",
        "prefill.engine.requests_max",
        "must be a whole number from 1, is 0",
    ),
    "simulated gpus": (
        SIMULATED + "prefill: {resources: {gpus: 1}}",
        "prefill.resources.gpus",
        "the deployment runs on simulated",
    ),
}
for _section in ("security", "telemetry"):
    MISTAKES[f"unknown in {_section}"] = (PAIR + f"{_section}: {{a: 1}}", f"{_section}.a", "is not a known key")
MISTAKES |= {
    "name with a dot": (PAIR + "name: a.b", "name", "must be small letters, digits and -, 63 at most"),
    "namespace in capitals": (PAIR + "namespace: Prod", "namespace", "must be small letters"),
    "unknown registry": (PAIR + "registry: {kind: zookeeper}", "registry.kind", "must be 'memory', 'file' or 'etcd'"),
    "etcd without members": (PAIR + "registry: {kind: etcd}", "registry", "say endpoints: [127.0.0.1:2379]"),
    "an endpoint that is a URL": (
        PAIR + "registry: {kind: etcd, endpoints: ['https://a:2379']}",
        "registry.endpoints.0",
        "is no host:port",
    ),
    "an endpoint without its list": (PAIR + "registry: {kind: etcd, endpoints: a:1}", "registry.endpoints", "a list"),
    "a folder without its kind": (PAIR + "registry: {path: /a}", "registry", "path is of kind file"),
    "a registry's folder from here": (PAIR + "registry: {kind: file, path: a}", "registry", "from '/' or '~' on"),
    "a user without a password": (
        PAIR + "registry: {kind: etcd, endpoints: ['a:1'], user: u}",
        "registry",
        "one of user and password",
    ),
    "a certificate without its key": (
        PAIR + "registry: {kind: etcd, endpoints: ['a:1'], tls: {cert: /a}}",
        "registry.tls",
        "one of cert and key",
    ),
    "a lease too short for etcd": (PAIR + "registry: {kind: memory, lease_s: 1}", "registry.lease_s", "at least 3"),
    "unknown lane": (PAIR + "transfer: {lanes: [cuda_ipc, rdme]}", "transfer.lanes.1", "did you mean rdma?"),
    "one lane that is no list": (PAIR + "transfer: {lanes: shm}", "transfer.lanes", "must be a list"),
    "tcp that is not allowed": (PAIR + "transfer: {lanes: [tcp]}", "transfer.lanes", "say allow_tcp: true"),
    "tcp that is left out": (PAIR + "transfer: {allow_tcp: true, lanes: [shm]}", "transfer.lanes", "add tcp"),
    "label of no kind": (PAIR + "transfer: {places: {a: {row: 1}}}", "transfer.places.a.row", "is not a known key"),
    "label with a space": (PAIR + "transfer: {places: {a: {rack: r 1}}}", "transfer.places.a.rack", "must be letters"),
    "page size of nothing": (PAIR + "transfer: {page_size: 0}", "transfer.page_size", "must be at least 1"),
    "two page sizes": (
        MODEL + "transfer: {page_size: 16}\nprefill: {}\ndecode: {engine: {page-size: 32}}",
        "decode.engine.page_size",
        "is 32 but prefill.engine.page_size is 16",
    ),
    "remote code in a pool": (
        MODEL + "prefill: {engine: {trust_remote_code: true}}\ndecode: {}",
        "prefill.engine.trust_remote_code",
        "say model.trust_remote_code",
    ),
}


@pytest.mark.parametrize(("text", "path", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_told_with_its_path_and_nothing_else_is(text: str, path: str, message: str) -> None:
    (problem,) = problems_in(text)
    assert problem.path == path
    assert message in str(problem)


def test_all_mistakes_are_told_at_once() -> None:
    problems = problems_in(
        """
        version: 1
        model: {}
        frontend: {port: 0, prot: 1}
        frontend: {port: 0, prot: 1}
        prefill:
        - {replicas: 0, engine: {host: a}}
        - {name: b}
        decode: {name: b, engine: {page_size: 1}}
        deadlines: {first_token_s: 400}
        security: {a: 1}
        """
    )
    assert {problem.path for problem in problems} == {
        "frontend",
        "model.path",
        "frontend.port",
        "frontend.prot",
        "prefill.0.replicas",
        "prefill.0.engine.host",
        "decode.name",
        "decode.engine.page_size",
        "deadlines.first_token_s",
        "security.a",
    }


@pytest.mark.parametrize("argument", OWNED_ARGUMENTS)
def test_an_argument_of_the_orchestrator_is_refused_with_the_place_to_say_it(argument: str) -> None:
    (problem,) = problems_in(PAIR.replace("decode: {}", f"decode: {{engine: {{{argument.replace('_', '-')}: 1}}}}"))
    assert problem.path == f"decode.engine.{argument}"
    assert problem.would_do.startswith(("say ", "leave it out", "put the pool"))


def test_a_huge_or_self_containing_value_makes_a_short_message() -> None:
    bomb = "\n".join(["b0: &b0 [x, x]", *(f"b{i}: &b{i} [*b{i - 1}, *b{i - 1}]" for i in range(1, 40))])
    started_s = time.monotonic()
    problems = problems_in(PAIR + "frontend: &f {host: *f}\nray: {address: " + "x" * 5000 + "}\n" + bomb)
    assert max(len(problem.what) for problem in problems) < 6000
    assert time.monotonic() - started_s < 120, "each of 2**39 was walked"


def test_unreadable_files_are_problems_too(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"version: 1 # \xe9")
    (tmp_path / "big.yaml").write_bytes(b"#" * (2 << 20))
    for name, message in (
        ("absent.yaml", "cannot be read: No such file"),
        (".", "cannot be read: Is a directory"),
        ("latin.yaml", "is not UTF-8 (byte 13)"),
        ("big.yaml", "is over 1 MiB"),
    ):
        with pytest.raises(ConfigError) as caught:
            load_config(tmp_path / name)
        assert message in str(caught.value)


@pytest.mark.parametrize(
    ("path", "name"),
    [("smollm2", "smollm2"), ("/models/Qwen3-8B/", "Qwen3-8B"), ("Qwen/Qwen3-0.6B", "Qwen3-0.6B"), ("~/x", "x")],
)
def test_the_model_is_named_after_its_folder(path: str, name: str) -> None:
    assert parse_config(f"version: 1\nmodel: {{path: {path}}}\naggregated: {{}}").model.name == name


def test_what_may_be_left_empty_is_absent() -> None:
    deployment = parse_config(PAIR + "frontend:\ndeadlines:\nray:\nrouting:\nsecurity: {}\naggregated:")
    assert deployment == parse_config(PAIR)
    assert parse_config(MODEL + "prefill: [null]\ndecode: {}") == deployment
