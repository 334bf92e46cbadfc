"""The Dockerfiles, parsed: what goes in is there, what is named is pinned, and nothing secret is in."""

from __future__ import annotations

import json
import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
from rendered import deploy, refused

from disagg.deploy.docker import CUDA_SGLANG
from disagg.load import parse_config

ROOT = Path(__file__).resolve().parents[2]
KNOWN = {"FROM", "ENV", "WORKDIR", "COPY", "RUN", "USER", "VOLUME", "EXPOSE", "HEALTHCHECK", "CMD"}
SECRETS = re.compile(r"(token|password|secret|api[_-]?key)\s*[=:]", re.IGNORECASE)


def instructions(text: str) -> list[tuple[str, str]]:
    """(instruction, its words), with continued lines joined and heredocs whole."""
    found, lines = [], iter(text.splitlines())
    for line in lines:
        if not line.strip() or line.startswith("#"):
            continue
        while line.endswith("\\"):
            line = line[:-1] + next(lines).strip()
        name, _, words = line.partition(" ")
        if heredoc := re.search(r"<<'(\w+)'", words):
            inside = []
            while (more := next(lines)) != heredoc[1]:
                inside.append(more)
            words += "\n" + "\n".join(inside)
        assert name in KNOWN, f"no instruction: {line}"
        found.append((name, words))
    return found


def of(name: str, text: str) -> list[str]:
    return [words for each, words in instructions(text) if each == name]


@pytest.fixture(params=["local-cpu", "two-gpus"])
def dockerfile(request: pytest.FixtureRequest) -> str:
    return deploy("docker", request.param)


def test_it_begins_with_one_pinned_base(dockerfile: str) -> None:
    (base,) = of("FROM", dockerfile)
    assert instructions(dockerfile)[0][0] == "FROM"
    assert re.search(r":v?\d+\.\d+\.\d+", base), f"{base} moves"


def test_nothing_is_left_to_be_filled_in(dockerfile: str) -> None:
    assert re.findall(r"@[A-Z_]+@", dockerfile) == []


def test_packages_are_pinned_and_no_index_is_named(dockerfile: str) -> None:
    installs = [words for words in of("RUN", dockerfile) if "pip install" in words]
    assert installs
    for words in installs:
        assert re.search(r'"ray\[default,serve\]==\d+\.\d+\.\d+"', words)
        assert "index-url" not in words
        assert "trusted-host" not in words
    assert re.findall(r"https?://(?!127\.0\.0\.1)", dockerfile) == []
    if of("FROM", dockerfile)[0].startswith("lmsysorg"):
        assert f"'.[cuda]' sglang=={CUDA_SGLANG}" in installs[0]
        assert of("FROM", dockerfile)[0].startswith(f"lmsysorg/sglang:v{CUDA_SGLANG}-")
    else:
        assert "--constraint disagg/cpu_profile/requirements.txt" in installs[0]


def test_it_holds_no_secret_and_no_model(dockerfile: str) -> None:
    assert [words for _, words in instructions(dockerfile) if SECRETS.search(words)] == []
    assert of("VOLUME", dockerfile) == ["/models"]
    assert "model get" not in "\n".join(of("RUN", dockerfile))


def test_the_configuration_lies_where_the_command_looks(dockerfile: str) -> None:
    (copied,) = [words for words in of("COPY", dockerfile) if "<<" in words]
    first, _, text = copied.partition("\n")
    command = json.loads(of("CMD", dockerfile)[0])
    assert command[:2] == ["disagg", "serve"]
    assert command[2] == first.split()[-1]
    deployment = parse_config(text, command[4::2])
    assert deployment.frontend.host == "0.0.0.0"
    assert of("EXPOSE", dockerfile) == [str(deployment.frontend.port)]


def test_the_health_check_asks_the_frontends_port() -> None:
    text = deploy("docker", "local-cpu", "--set", "frontend.port=9123", "--set", "deadlines.start_s=90")
    (check,) = of("HEALTHCHECK", text)
    assert "127.0.0.1:9123/ready" in check
    assert "--start-period=90s" in check
    assert '"--set", "frontend.port=9123"' in of("CMD", text)[0]


def test_only_the_cpu_image_gives_up_root() -> None:
    """IPC_LOCK, with which RDMA registers memory, does nothing for another user."""
    assert of("USER", deploy("docker", "local-cpu")) == ["disagg"]
    assert of("USER", deploy("docker", "two-gpus")) == []


def test_all_that_is_copied_exists_and_passes_the_ignore_file(dockerfile: str, tmp_path: Path) -> None:
    made = tmp_path / "image" / "Dockerfile.cpu"
    deploy("docker", "local-cpu", "-o", made)
    ignore = made.with_name("Dockerfile.cpu.dockerignore").read_text().splitlines()
    assert "*" in ignore
    for words in of("COPY", dockerfile):
        if "<<" in words:
            continue
        for source in words.split()[:-1]:
            path = source.removeprefix("./")
            assert (ROOT / path).exists(), path
            assert f"!{path.split('/')[0]}" in ignore, f"{path} does not reach the build"
    assert not any(fnmatch(".git", line.removeprefix("!")) for line in ignore if line.startswith("!"))


def test_what_the_wheel_needs_is_copied(dockerfile: str) -> None:
    """pyproject.toml names what it builds from; without it `pip install .` fails in the image alone."""
    copied = {source for words in of("COPY", dockerfile) for source in words.split()[:-1]}
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project, wheel = pyproject["project"], pyproject["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {
        "pyproject.toml",
        project["readme"],
        *project["license-files"],
        *wheel["packages"],
        *wheel["force-include"],
    }
    assert {"LICENSE", "configs", "disagg", "disagg_start.py", "decode"} < needed
    assert {f"./{each}" for each in needed} <= copied


def test_a_bad_configuration_writes_nothing(tmp_path: Path) -> None:
    assert set(refused("docker", "local-cpu", "--set", "frontend.port=x", "-o", tmp_path / "Dockerfile")) == {
        "frontend.port"
    }
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("gpus", "base"), [(0, "python:"), (8, "lmsysorg/sglang:")])
def test_device_auto_gets_the_image_of_what_its_machines_have(gpus: int, base: str, tmp_path: Path) -> None:
    path = tmp_path / "auto.yaml"
    path.write_text("version: 1\nmodel: {path: smollm2}\naggregated: {}\n")
    assert set(refused("docker", path)) == {"--gpus-per-node"}
    assert of("FROM", deploy("docker", path, "--gpus-per-node", gpus))[0].startswith(base)
