"""Every argument of SGLang passes, or is refused by name, with the reason and what would do."""

import pytest

from disagg.roles import Role
from disagg.sglang.arguments import Ports, engine_arguments
from disagg.sglang.owned_arguments import OWNED_ARGUMENTS
from disagg.sglang.releases import RELEASES, installed_release, release
from disagg.sglang.versions import emit
from tests.config.sglang_document import DOCUMENT, renewed
from tests.config.sglang_values import passing_arguments


def test_every_argument_of_the_installed_release_passes_or_is_refused_with_a_reason() -> None:
    sglang = installed_release()
    if sglang is None or sglang.version not in RELEASES:
        pytest.skip("no supported sglang is installed here")
    passing = passing_arguments(sglang.version, switches=True).keys()
    refused = sglang.arguments.keys() & OWNED_ARGUMENTS.keys()
    assert passing | refused == sglang.arguments.keys()
    assert not passing & refused
    assert len(passing) > 300


@pytest.mark.parametrize("name", OWNED_ARGUMENTS)
def test_a_refusal_says_why_and_what_would_do(name: str) -> None:
    why, would_do = OWNED_ARGUMENTS[name]
    assert len(why) > 15
    assert len(would_do) > 5
    in_releases = [version for version in RELEASES if name in release(version).arguments]
    assert in_releases or name == "config"  # of the command line alone


@pytest.mark.parametrize("version", RELEASES)
def test_what_has_no_place_on_the_command_line_is_refused(version: str) -> None:
    known = release(version)
    assert known.arguments.keys() - known.options.keys() <= OWNED_ARGUMENTS.keys()


@pytest.mark.parametrize("version", RELEASES)
@pytest.mark.parametrize("role", Role)
def test_what_the_orchestrator_says_by_itself_every_release_has(role: Role, version: str) -> None:
    ports = Ports.from_first(20000)
    said = engine_arguments(role, {}, device="cuda", model_path="m", host="h", ports=ports)
    assert emit(said, version).keys() <= release(version).arguments.keys()


def test_the_document_lists_what_the_code_says() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert text.count("<!-- list: ") == 4
    assert text == renewed(text), "python -m tests.config.sglang_document renews the lists"
